//! The state of one stream: what the guest was told and has told, and the credit
//! of both sides. No input or output happens here.
//!
//! ```text
//!  to_guest() -> Requesting --RESPONSE--> Established <- from_guest()
//!                    |                        |
//!        RST, or     |                        | RST, a broken rule, or both
//!        nonsense    v                        v directions shut by the guest
//!                  gone <-----------------  gone
//! ```
//!
//! Each direction ends by itself. The guest ends one with `SHUTDOWN`; the host side
//! ends one through [`Connection::shut`], which makes a `SHUTDOWN` pending. A guest
//! that has shut both waits for an RST before its `close()` returns, so the owner
//! answers [`Event::Finished`] with one at once.

use std::num::Wrapping;

use super::packet::{Header, op, shutdown};
use super::{BUF_ALLOC, CREDIT_UPDATE_THRESHOLD, MAX_PAYLOAD};

/// What a packet from the guest means for the owner of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing to do, or only something [`Connection::next_control`] will tell.
    Nothing,
    /// The guest has accepted.
    Accepted,
    /// The payload is for the host.
    Data,
    /// The guest will not receive or not send any more; see [`Connection::guest_shut`].
    Shutdown,
    /// The guest has shut both directions: answer RST and forget the stream.
    Finished,
    /// The guest has dropped the stream: forget it, answer nothing.
    Reset,
    /// The guest broke the protocol: answer RST and forget the stream.
    Violation,
}

/// A packet without payload that is due to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// One of [`op`].
    pub op: u16,
    /// Flags, for a `SHUTDOWN`.
    pub flags: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Requesting,
    Established,
}

/// One stream.
#[derive(Clone, Debug)]
pub struct Connection {
    state: State,
    /// The REQUEST or RESPONSE that opens the stream is still to be sent.
    open_pending: bool,

    /// Guest to host: bytes received, taken by the host, and told to be taken.
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    advertised: Wrapping<u32>,
    update_pending: bool,

    /// Host to guest: bytes sent, and the guest's last word on its buffer.
    sent: Wrapping<u32>,
    guest_forwarded: Wrapping<u32>,
    guest_buf_alloc: u32,
    /// A request for credit: wanted, and sent since credit last changed.
    credit_wanted: bool,
    credit_asked: bool,

    /// Bits of [`shutdown`]: said by the guest; due to be told; told.
    guest_shut: u32,
    host_shut: u32,
    told_shut: u32,
}

impl Connection {
    /// A stream the host opens: a REQUEST is pending.
    pub fn to_guest() -> Self {
        Self::new(State::Requesting)
    }

    /// A stream the guest opens with `request`: a RESPONSE is pending.
    pub fn from_guest(request: &Header) -> Self {
        let mut connection = Self::new(State::Established);
        connection.guest_buf_alloc = request.buf_alloc;
        connection
    }

    fn new(state: State) -> Self {
        let zero = Wrapping(0);
        Self {
            state,
            open_pending: true,
            received: zero,
            forwarded: zero,
            advertised: zero,
            update_pending: false,
            sent: zero,
            guest_forwarded: zero,
            guest_buf_alloc: 0,
            credit_wanted: false,
            credit_asked: false,
            guest_shut: 0,
            host_shut: 0,
            told_shut: 0,
        }
    }

    /// Takes in a packet of this stream.
    pub fn receive(&mut self, header: &Header) -> Event {
        if header.op == op::RST {
            return Event::Reset;
        }
        if !self.update_guest_credit(header) {
            return Event::Violation;
        }
        match (self.state, header.op) {
            (State::Requesting, op::RESPONSE) if !self.open_pending => {
                self.state = State::Established;
                Event::Accepted
            }
            (State::Requesting, op::CREDIT_UPDATE) => Event::Nothing,
            (State::Established, op::RW) => self.receive_data(header.len),
            (State::Established, op::SHUTDOWN) => {
                self.guest_shut |= header.flags & shutdown::BOTH;
                if self.guest_shut == shutdown::BOTH {
                    Event::Finished
                } else {
                    Event::Shutdown
                }
            }
            (State::Established, op::CREDIT_UPDATE) => Event::Nothing,
            (State::Established, op::CREDIT_REQUEST) => {
                self.update_pending = true;
                Event::Nothing
            }
            _ => Event::Violation,
        }
    }

    /// `false` if the guest claims to have consumed more than it was sent.
    ///
    /// Packets of one stream may leave the guest in another order than their headers
    /// were filled in, so an older count than the last is no error, only no news.
    fn update_guest_credit(&mut self, header: &Header) -> bool {
        let outstanding = self.sent - self.guest_forwarded;
        let advance = Wrapping(header.fwd_cnt) - self.guest_forwarded;
        let old = advance.0 > u32::MAX / 2;
        if !old && advance > outstanding {
            return false;
        }
        if !old {
            self.guest_forwarded += advance;
        }
        self.guest_buf_alloc = header.buf_alloc;
        if self.room() > 0 {
            self.credit_wanted = false;
            self.credit_asked = false;
        }
        true
    }

    fn receive_data(&mut self, len: u32) -> Event {
        let buffered = (self.received - self.forwarded).0;
        let over = len > MAX_PAYLOAD || len > BUF_ALLOC.saturating_sub(buffered);
        if over || self.guest_shut & shutdown::SEND != 0 {
            return Event::Violation;
        }
        self.received += len;
        Event::Data
    }

    /// The guest has accepted, or it was the guest that asked.
    pub fn is_established(&self) -> bool {
        self.state == State::Established
    }

    /// Directions the guest has ended, bits of [`shutdown`].
    pub fn guest_shut(&self) -> u32 {
        self.guest_shut
    }

    /// Ends directions on behalf of the host. Bytes from the host that come before
    /// the end must have been sent.
    pub fn shut(&mut self, directions: u32) {
        self.host_shut |= directions;
    }

    /// The guest knows that the host has ended both directions.
    pub fn told_all(&self) -> bool {
        self.told_shut == shutdown::BOTH
    }

    /// Bytes the guest can take now.
    pub fn room(&self) -> u32 {
        let outstanding = (self.sent - self.guest_forwarded).0;
        self.guest_buf_alloc.saturating_sub(outstanding)
    }

    /// There is something for the guest, but no room: ask it, once.
    pub fn want_credit(&mut self) {
        self.credit_wanted = !self.credit_asked;
    }

    /// The host has taken `len` bytes out of the buffer.
    pub fn forward(&mut self, len: u32) {
        self.forwarded += len;
        let silent = self.guest_shut & shutdown::SEND != 0;
        if !silent && (self.forwarded - self.advertised).0 >= CREDIT_UPDATE_THRESHOLD {
            self.update_pending = true;
        }
    }

    /// Something is due to the guest besides payload.
    pub fn has_control(&self) -> bool {
        self.open_pending
            || (self.is_established()
                && (self.host_shut != self.told_shut || self.update_pending || self.credit_wanted))
    }

    /// The next packet due to the guest besides payload; it counts as sent.
    pub fn next_control(&mut self) -> Option<Control> {
        let control = |op| Some(Control { op, flags: 0 });
        if self.open_pending {
            self.open_pending = false;
            return match self.state {
                State::Requesting => control(op::REQUEST),
                State::Established => control(op::RESPONSE),
            };
        }
        if !self.has_control() {
            return None;
        }
        if self.host_shut != self.told_shut {
            self.told_shut = self.host_shut;
            let flags = self.told_shut;
            let op = op::SHUTDOWN;
            return Some(Control { op, flags });
        }
        if self.credit_wanted {
            self.credit_wanted = false;
            self.credit_asked = true;
            return control(op::CREDIT_REQUEST);
        }
        control(op::CREDIT_UPDATE)
    }

    /// Counts `len` bytes of payload as sent.
    pub fn send(&mut self, len: u32) {
        self.sent += len;
    }

    /// Fills in this side's credit; the packet must be sent.
    pub fn stamp(&mut self, header: &mut Header) {
        header.buf_alloc = BUF_ALLOC;
        header.fwd_cnt = self.forwarded.0;
        self.advertised = self.forwarded;
        self.update_pending = false;
    }
}

#[cfg(test)]
mod tests;
