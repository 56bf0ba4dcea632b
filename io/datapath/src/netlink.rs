//! One blocking rtnetlink socket. It stays in the namespace it was opened in. What is asked through it lives with each noun.

use std::io;
use std::sync::Mutex;

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::error::NetlinkError;

pub(crate) struct Netlink {
    socket: Mutex<Conversation>,
}

struct Conversation {
    socket: Socket,
    sequence: u32,
}

/// The protocol number by which the kernel and `ip route` know our routes and addresses.
pub(crate) const ORIGIN: u8 = 119;

impl Netlink {
    /// In the calling thread's namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(|source| NetlinkError { action: "open a socket".to_owned(), source })?;
        Ok(Self { socket: Mutex::new(Conversation { socket, sequence: 0 }) })
    }

    /// Asks for a change; `flags` beyond request and acknowledgement.
    pub fn change(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: impl FnOnce() -> String,
    ) -> Result<(), NetlinkError> {
        match self.converse(message, NLM_F_REQUEST | NLM_F_ACK | flags) {
            Ok(_) => Ok(()),
            Err(source) => Err(NetlinkError { action: action(), source }),
        }
    }

    /// As `change`, and `gone` if what was to be changed is not there.
    pub fn change_if_there(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: impl FnOnce() -> String,
    ) -> Result<(), NetlinkError> {
        match self.change(message, flags, action) {
            Err(error) if is_missing(&error.source) => Ok(()),
            result => result,
        }
    }

    pub fn dump(
        &self,
        message: RouteNetlinkMessage,
        what: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.converse(message, NLM_F_REQUEST | NLM_F_DUMP)
            .map_err(|source| NetlinkError { action: format!("list {what}"), source })
    }

    fn converse(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut conversation = self.socket.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        conversation.sequence = conversation.sequence.wrapping_add(1);
        let sequence = conversation.sequence;
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        request.header.sequence_number = sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        conversation.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = conversation.socket.recv_from_full()?;
            if collect(&datagram, sequence, &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

/// Returns whether the answer is complete.
fn collect(datagram: &[u8], sequence: u32, answers: &mut Vec<RouteNetlinkMessage>) -> io::Result<bool> {
    let mut rest = datagram;
    while rest.len() >= 16 {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
        let length = (message.header.length as usize).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
        if message.header.sequence_number != sequence {
            continue;
        }
        match message.payload {
            NetlinkPayload::InnerMessage(inner) => answers.push(inner),
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) if error.code.is_none() => return Ok(true),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            _ => {}
        }
        if length == 0 {
            break;
        }
    }
    Ok(false)
}

/// The object named is not there (any more).
pub(crate) fn is_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::EADDRNOTAVAIL))
}
