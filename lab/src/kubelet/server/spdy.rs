//! As much of SPDY/3.1 as port-forward streams need: frames, and header blocks in their compressed form.
//! Pure: bytes in, frames out. What the streams carry is in port_forward.rs.
use std::collections::BTreeMap;

use bytes::{Buf, Bytes, BytesMut};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};

/// More than this in one frame is refused rather than buffered.
const LARGEST_FRAME: usize = 1 << 20;
const WINDOW: usize = 32 << 10;
const FLAG_FIN: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Open {
        id: StreamId,
        headers: BTreeMap<String, String>,
        fin: Fin,
    },
    Data {
        id: StreamId,
        bytes: Bytes,
        fin: Fin,
    },
    Reset {
        id: StreamId,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// Of a kind that changes nothing here.
    Other,
}

/// Whether the sender will send no more on the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fin {
    Open,
    Closed,
}

impl Fin {
    fn of(flags: u8) -> Self {
        if flags & FLAG_FIN != 0 { Self::Closed } else { Self::Open }
    }

    fn flags(self) -> u8 {
        match self {
            Self::Open => 0,
            Self::Closed => FLAG_FIN,
        }
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpdyError {
    #[error("SPDY frame of {0} bytes")]
    TooLarge(usize),
    #[error("SPDY frame is cut short")]
    Short,
    #[error("SPDY headers cannot be decompressed")]
    Headers,
}

/// Takes the bytes of one connection apart.
pub struct Reader {
    pending: BytesMut,
    headers: Inflater,
}

impl Default for Reader {
    fn default() -> Self {
        Self { pending: BytesMut::new(), headers: Inflater::new() }
    }
}

impl Reader {
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole frame, if it has arrived.
    pub fn next(&mut self) -> Result<Option<Frame>, SpdyError> {
        let Some(head) = self.pending.first_chunk::<8>().copied() else { return Ok(None) };
        let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
        if length > LARGEST_FRAME {
            return Err(SpdyError::TooLarge(length));
        }
        if self.pending.len() < 8 + length {
            return Ok(None);
        }
        self.pending.advance(8);
        let payload = self.pending.split_to(length).freeze();
        self.understand(head, payload).map(Some)
    }

    fn understand(&mut self, head: [u8; 8], payload: Bytes) -> Result<Frame, SpdyError> {
        let flags = head[4];
        if head[0] & 0x80 == 0 {
            let id = StreamId(u32::from_be_bytes([head[0], head[1], head[2], head[3]]));
            return Ok(Frame::Data { id, bytes: payload, fin: Fin::of(flags) });
        }
        Ok(match u16::from_be_bytes([head[2], head[3]]) {
            1 => {
                let id = StreamId(word(&payload, 0)? & 0x7fff_ffff);
                let block = payload.get(10..).ok_or(SpdyError::Short)?;
                Frame::Open {
                    id,
                    headers: parse_headers(&self.headers.inflate(block)?)?,
                    fin: Fin::of(flags),
                }
            }
            3 => Frame::Reset { id: StreamId(word(&payload, 0)? & 0x7fff_ffff) },
            6 => Frame::Ping { id: word(&payload, 0)? },
            7 => Frame::GoAway,
            8 => {
                // Of no use here, but every block moves the decompressor on.
                self.headers.inflate(payload.get(4..).ok_or(SpdyError::Short)?)?;
                Frame::Other
            }
            _ => Frame::Other,
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u32, SpdyError> {
    let bytes = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>()).ok_or(SpdyError::Short)?;
    Ok(u32::from_be_bytes(*bytes))
}

fn parse_headers(block: &[u8]) -> Result<BTreeMap<String, String>, SpdyError> {
    let mut at = 4;
    let mut text = || -> Result<String, SpdyError> {
        let length = word(block, at)? as usize;
        let bytes = block.get(at + 4..).and_then(|rest| rest.get(..length)).ok_or(SpdyError::Short)?;
        at += 4 + length;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    };
    let mut headers = BTreeMap::new();
    for _ in 0..word(block, 0)?.min(256) {
        let name = text()?.to_ascii_lowercase();
        headers.insert(name, text()?);
    }
    Ok(headers)
}

/// Writes the frames that carry headers, whose compression runs over the whole connection.
#[derive(Default)]
pub struct Writer {
    headers_begun: bool,
}

impl Writer {
    pub fn reply(&mut self, id: StreamId) -> Vec<u8> {
        let mut payload = id.0.to_be_bytes().to_vec();
        payload.extend(self.deflate(&0_u32.to_be_bytes()));
        control(2, 0, &payload)
    }

    /// Stored blocks of one zlib stream: valid for every reader, and no compressor is needed.
    fn deflate(&mut self, block: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        if !std::mem::replace(&mut self.headers_begun, true) {
            out.extend_from_slice(&[0x78, 0x01]);
        }
        let length = u16::try_from(block.len()).unwrap_or(u16::MAX);
        out.push(0);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(&block[..usize::from(length)]);
        // The empty block of a flush: readers hand out what came before it and wait for more without an error.
        out.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
        out
    }
}

/// A data frame, which depends on no frame before it.
pub fn data(id: StreamId, bytes: &[u8], fin: Fin) -> Vec<u8> {
    let mut frame = (id.0 & 0x7fff_ffff).to_be_bytes().to_vec();
    frame.extend_from_slice(&length_word(fin.flags(), bytes.len()));
    frame.extend_from_slice(bytes);
    frame
}

pub fn pong(id: u32) -> Vec<u8> {
    control(6, 0, &id.to_be_bytes())
}

fn control(kind: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80, 3];
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(&length_word(flags, payload.len()));
    frame.extend_from_slice(payload);
    frame
}

fn length_word(flags: u8, length: usize) -> [u8; 4] {
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [flags, length[1], length[2], length[3]]
}

/// One zlib stream over all header blocks of a connection, with SPDY's preset dictionary.
struct Inflater {
    state: Box<DecompressorOxide>,
    window: Vec<u8>,
    at: usize,
    begun: bool,
}

impl Inflater {
    fn new() -> Self {
        let mut window = dictionary();
        let at = window.len();
        window.resize(WINDOW, 0);
        Self { state: Box::default(), window, at, begun: false }
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let mut input = block;
        if !std::mem::replace(&mut self.begun, true) {
            // Two bytes of zlib header, and four that name the dictionary when it is in use.
            let uses_dictionary = block.get(1).ok_or(SpdyError::Short)? & 0x20 != 0;
            input = block.get(if uses_dictionary { 6 } else { 2 }..).ok_or(SpdyError::Short)?;
        }
        let mut out = Vec::new();
        loop {
            let flags = inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
            let (status, read, written) =
                decompress(&mut self.state, input, &mut self.window, self.at, flags);
            out.extend_from_slice(&self.window[self.at..self.at + written]);
            self.at = (self.at + written) % WINDOW;
            input = &input[read..];
            if out.len() > LARGEST_FRAME {
                return Err(SpdyError::TooLarge(out.len()));
            }
            match status {
                TINFLStatus::HasMoreOutput => {}
                TINFLStatus::NeedsMoreInput => return Ok(out),
                _ => return Err(SpdyError::Headers),
            }
        }
    }
}

/// The words SPDY/3 presets, each with its length, then running text.
fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in WORDS.split(' ').chain(["200 OK"]).chain(MORE_WORDS.split(' ')) {
        bytes.extend_from_slice(&u32::try_from(word.len()).unwrap_or_default().to_be_bytes());
        bytes.extend_from_slice(word.as_bytes());
    }
    bytes.extend_from_slice(TEXT.as_bytes());
    bytes
}

const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding \
    content-language content-length content-location content-md5 content-range content-type date etag expect \
    expires from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified \
    location max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te \
    trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get status";
const MORE_WORDS: &str = "version HTTP/1.1 url public set-cookie keep-alive origin";
const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
    403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
    text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

#[cfg(test)]
mod tests {
    use super::*;

    fn adler32(bytes: &[u8]) -> u32 {
        let (low, high) = bytes.iter().fold((1_u32, 0_u32), |(low, high), byte| {
            let low = (low + u32::from(*byte)) % 65521;
            (low, (high + low) % 65521)
        });
        high << 16 | low
    }

    #[test]
    fn the_dictionary_is_the_one_clients_name() {
        assert_eq!(dictionary().len(), 1423);
        assert_eq!(adler32(&dictionary()), 0xe3c6_a7c2);
    }

    /// Two blocks of one stream, compressed by zlib with the dictionary: `port: 80, requestid: 0, streamtype: ...`.
    const BLOCKS: [&str; 2] = [
        "78f9e3c6a7c202253a50120fc82f02a555260b0320c9098dad4c502a66048970059714a526e6428b1ad654504400000000ffff",
        "224b2ba8944a04000000ffff",
    ];

    fn bytes_of(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
    }

    fn open_frame(id: u32, block: &[u8]) -> Vec<u8> {
        let mut payload = id.to_be_bytes().to_vec();
        payload.extend_from_slice(&[0; 6]);
        payload.extend_from_slice(block);
        control(1, 0, &payload)
    }

    #[test]
    fn streams_are_opened_byte_by_byte_as_a_client_does() {
        let mut reader = Reader::default();
        let mut frames = Vec::new();
        for (id, block) in [(1, BLOCKS[0]), (3, BLOCKS[1])] {
            for byte in open_frame(id, &bytes_of(block)) {
                reader.push(&[byte]);
                frames.extend(reader.next().expect("well-formed"));
            }
        }
        let kinds: Vec<_> = frames
            .iter()
            .map(|frame| match frame {
                Frame::Open { id, headers, .. } => {
                    (id.0, headers["streamtype"].as_str(), headers["port"].as_str())
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(kinds, [(1, "error", "80"), (3, "data", "80")]);
    }

    #[test]
    fn data_and_pings_pass_and_nonsense_is_refused() {
        let mut reader = Reader::default();
        reader.push(&data(StreamId(5), b"hello", Fin::Closed));
        reader.push(&pong(9));
        let expected = Frame::Data { id: StreamId(5), bytes: Bytes::from_static(b"hello"), fin: Fin::Closed };
        assert_eq!(reader.next(), Ok(Some(expected)));
        assert_eq!(reader.next(), Ok(Some(Frame::Ping { id: 9 })));
        assert_eq!(reader.next(), Ok(None));
        reader.push(&[0x80, 3, 0, 1, 0, 255, 255, 255]);
        assert_eq!(reader.next(), Err(SpdyError::TooLarge(0xff_ffff)));
        let mut reader = Reader::default();
        reader.push(&open_frame(1, &[0x78, 0xbb, 0, 0, 0, 0, 7, 7, 7]));
        assert_eq!(reader.next(), Err(SpdyError::Headers));
    }

    #[test]
    fn a_reply_is_a_zlib_stream_of_stored_blocks() {
        let mut writer = Writer::default();
        let first = writer.reply(StreamId(1));
        assert_eq!(first[..12], [0x80, 3, 0, 2, 0, 0, 0, 20, 0, 0, 0, 1]);
        assert_eq!(first[12..], [0x78, 1, 0, 4, 0, 251, 255, 0, 0, 0, 0, 0, 0, 0, 255, 255]);
        assert_eq!(writer.reply(StreamId(3)).len(), first.len() - 2);
    }
}
