//! Many deadlines on one timer.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

/// At most one deadline for each of many ids, and a timer that is readable once the
/// first has passed.
pub struct Deadlines {
    timer: TimerFd,
    set_for: Option<Instant>,
    in_order: BTreeSet<(Instant, u64)>,
    by_id: HashMap<u64, Instant>,
}

impl Deadlines {
    /// None yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            timer: TimerFd::new().map_err(io::Error::from)?,
            set_for: None,
            in_order: BTreeSet::new(),
            by_id: HashMap::new(),
        })
    }

    /// The timer, for an epoll set.
    pub fn timer(&self) -> &TimerFd {
        &self.timer
    }

    /// Gives `id` this long from now, instead of what it had.
    pub fn set(&mut self, id: u64, timeout: Duration) {
        self.clear(id);
        let deadline = Instant::now() + timeout;
        self.in_order.insert((deadline, id));
        self.by_id.insert(id, deadline);
    }

    /// Takes the deadline of `id` away, if it has one.
    pub fn clear(&mut self, id: u64) {
        if let Some(deadline) = self.by_id.remove(&id) {
            self.in_order.remove(&(deadline, id));
        }
    }

    /// Whether `id` has a deadline.
    pub fn has(&self, id: u64) -> bool {
        self.by_id.contains_key(&id)
    }

    /// Takes out an id whose deadline has passed.
    pub fn pop_expired(&mut self) -> Option<u64> {
        let (deadline, id) = self.in_order.first().copied()?;
        if deadline > Instant::now() {
            return None;
        }
        self.clear(id);
        Some(id)
    }

    /// Sets the timer for the first deadline. To be called after changes, and after the
    /// timer was readable: setting it takes its readiness away (reading it could block).
    pub fn arm(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let first = self.in_order.first().map(|(deadline, _)| *deadline);
        if first == self.set_for && self.set_for.is_none_or(|time| time > now) {
            return Ok(());
        }
        match first {
            Some(time) => {
                // A zero duration would disarm it.
                let wait = time.saturating_duration_since(now);
                let wait = wait.max(Duration::from_nanos(1));
                self.timer.reset(wait, None).map_err(io::Error::from)?;
            }
            None => self.timer.clear().map_err(io::Error::from)?,
        }
        self.set_for = first;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(1000);

    #[test]
    fn ids_expire_in_order_and_once() {
        let mut deadlines = Deadlines::new().unwrap();
        deadlines.set(1, Duration::ZERO);
        deadlines.set(2, LONG);
        deadlines.set(3, Duration::ZERO);
        assert_eq!(deadlines.pop_expired(), Some(1));
        assert_eq!(deadlines.pop_expired(), Some(3));
        assert_eq!(deadlines.pop_expired(), None);
        assert!(deadlines.has(2) && !deadlines.has(1));
    }

    #[test]
    fn a_new_deadline_replaces_the_old_one() {
        let mut deadlines = Deadlines::new().unwrap();
        deadlines.set(1, Duration::ZERO);
        deadlines.set(1, LONG);
        assert_eq!(deadlines.pop_expired(), None);
        deadlines.clear(1);
        assert!(!deadlines.has(1));
        assert!(deadlines.in_order.is_empty());
    }

    #[test]
    fn the_timer_follows_the_first_deadline() {
        let mut deadlines = Deadlines::new().unwrap();
        deadlines.arm().unwrap();
        assert!(!deadlines.timer.is_armed().unwrap());
        deadlines.set(1, LONG);
        deadlines.arm().unwrap();
        assert!(deadlines.timer.is_armed().unwrap());
        deadlines.set(2, Duration::from_millis(1));
        deadlines.arm().unwrap();
        deadlines.timer.wait().unwrap();
        assert_eq!(deadlines.pop_expired(), Some(2));
        deadlines.clear(1);
        deadlines.arm().unwrap();
        assert!(!deadlines.timer.is_armed().unwrap());
    }
}
