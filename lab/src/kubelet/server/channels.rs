//! The remote-command protocol over WebSocket: each message begins with the number of its channel.
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};

use super::websocket::Socket;
use crate::kubelet::streams::TerminalSize;

/// The versions spoken; they differ in whether a client can close its stdin.
pub const VERSIONS: [(&str, ()); 2] = [("v5.channel.k8s.io", ()), ("v4.channel.k8s.io", ())];

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Version 5: the next byte is the channel that the client closes.
const CLOSE: u8 = 255;

/// What the client says.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Stdin(Bytes),
    StdinEnd,
    Resize(TerminalSize),
    Nothing,
}

/// What the client hears.
#[derive(Debug)]
pub enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
}

pub struct Hears(SplitSink<Socket, Message>);
pub struct Says(SplitStream<Socket>);

pub fn split(socket: Socket) -> (Hears, Says) {
    let (sink, stream) = socket.split();
    (Hears(sink), Says(stream))
}

impl Says {
    /// The next message; `None` when the client is gone.
    pub async fn next(&mut self) -> Option<Said> {
        match self.0.next().await?.ok()? {
            Message::Binary(bytes) => Some(understand(bytes)),
            Message::Text(text) => Some(understand(Bytes::copy_from_slice(text.as_bytes()))),
            Message::Close(_) => None,
            _ => Some(Said::Nothing),
        }
    }
}

fn understand(message: Bytes) -> Said {
    match message.split_first() {
        Some((&STDIN, _)) => Said::Stdin(message.slice(1..)),
        Some((&CLOSE, [STDIN, ..])) => Said::StdinEnd,
        Some((&RESIZE, text)) => terminal_size(text).map_or(Said::Nothing, Said::Resize),
        _ => Said::Nothing,
    }
}

fn terminal_size(text: &[u8]) -> Option<TerminalSize> {
    let size: Value = serde_json::from_slice(text).ok()?;
    let number = |name: &str| u16::try_from(size.get(name)?.as_u64()?).ok();
    Some(TerminalSize { columns: number("Width")?, rows: number("Height")? })
}

type Sent = Result<(), tokio_tungstenite::tungstenite::Error>;

impl Hears {
    pub async fn output(&mut self, output: Output) -> Sent {
        let (channel, bytes) = match output {
            Output::Stdout(bytes) => (STDOUT, bytes),
            Output::Stderr(bytes) => (STDERR, bytes),
        };
        self.send(channel, &bytes).await
    }

    /// The last words: the status, then the close.
    pub async fn end(mut self, status: &Value) -> Sent {
        self.send(ERROR, status.to_string().as_bytes()).await?;
        let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        self.0.send(Message::Close(Some(close))).await
    }

    async fn send(&mut self, channel: u8, bytes: &[u8]) -> Sent {
        let mut message = Vec::with_capacity(bytes.len() + 1);
        message.push(channel);
        message.extend_from_slice(bytes);
        self.0.send(Message::Binary(message.into())).await
    }
}

pub fn success() -> Value {
    json!({"metadata": {}, "status": "Success"})
}

pub fn exited(code: i32) -> Value {
    if code == 0 {
        return success();
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

pub fn failed(message: &str) -> Value {
    json!({
        "metadata": {},
        "status": "Failure",
        "reason": "InternalError",
        "message": format!("Internal error occurred: {message}"),
        "details": {"causes": [{"message": message}]},
        "code": 500,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_told_apart() {
        for (message, said) in [
            (b"\x00abc".as_slice(), Said::Stdin(Bytes::from_static(b"abc"))),
            (b"\xff\x00", Said::StdinEnd),
            (b"\xff\x01", Said::Nothing),
            (b"\x04{\"Width\":80,\"Height\":24}", Said::Resize(TerminalSize { columns: 80, rows: 24 })),
            (b"\x04{\"Width\":-1}", Said::Nothing),
            (b"", Said::Nothing),
        ] {
            assert_eq!(understand(Bytes::copy_from_slice(message)), said, "{message:?}");
        }
    }

    #[test]
    fn an_exit_code_is_where_clients_look_for_it() {
        assert_eq!(exited(0)["status"], "Success");
        assert_eq!(exited(7)["details"]["causes"][0], json!({"reason": "ExitCode", "message": "7"}));
    }
}
