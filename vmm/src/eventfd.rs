//! Eventfds as flags: raised by one thread, lowered by the one that waits for them.

use std::io::ErrorKind;

use vmm_sys_util::eventfd::EventFd;

/// Makes `event` readable.
pub fn raise(event: &EventFd) {
    match event.write(1) {
        Ok(()) => {}
        // The counter is full, so it is readable.
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        Err(error) => log::error!("an event was lost: {error}"),
    }
}

/// Makes `event` not readable; tells whether it was.
pub fn lower(event: &EventFd) -> bool {
    match event.read() {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        Err(error) => {
            log::error!("an event cannot be read: {error}");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[test]
    fn raising_twice_is_raising_once() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        assert!(!lower(&event));
        event.write(u64::MAX - 1).unwrap();
        raise(&event);
        raise(&event);
        assert!(lower(&event));
        assert!(!lower(&event));
    }
}
