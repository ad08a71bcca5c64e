//! The guest's network follows the pod's: what changes in the namespace, by whomever, the
//! guest is given at once.
//!
//! A task owns what the guest has. When the kernel tells of a change, it looks at the whole
//! namespace: links that are gone are unplugged, new ones are plugged, and of everything else
//! the guest is given the difference. Many changes in a row are one, if they come faster than
//! the guest takes them. What the guest or the host refuses is a warning, and tried again
//! after a while and with the next change; only the end of the VMM ends the task.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use agent_protocol::agent::{Link as GuestLink, NetworkRefusal};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::detour;
use super::difference::{self, Difference, Item, Kind, Step};
use super::events::Events;
use super::mirror::{self, Pair};
use super::netfilter::Filters;
use super::redirect::Redirect;
use super::scan::{Link, Scan};
use super::{Netns, Network, NetworkError};
use crate::error::chain;
use crate::sandbox::agent::{Agent, AgentError};
use crate::sandbox::nics::{NicError, Nics};
use crate::sandbox::vmm_process::{self, VmmEnd};

/// How long a container's start waits for the guest to have what the namespace has.
const SETTLE: Duration = Duration::from_secs(10);
/// Least time between two looks that nobody waits for.
const PACE: Duration = Duration::from_millis(50);
/// When what failed is tried again, at first and at last.
const RETRY: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);
/// How long the task may take to end after the VMM. What it waits for then ends by itself.
const END: Duration = Duration::from_millis(500);

/// Why the guest was not given what the namespace has.
#[derive(Debug, Error)]
pub enum FollowError {
    /// The host's side.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The guest.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// A device.
    #[error(transparent)]
    Nic(#[from] NicError),
    /// A thread of the shim.
    #[error("a look at the pod's network namespace panicked")]
    Panicked,
}

/// A handle on the task.
pub struct Follower(mpsc::Sender<oneshot::Sender<()>>);

impl Follower {
    /// Gives the guest what was found at the boot, and follows the namespace from then on.
    ///
    /// # Errors
    /// See [`FollowError`]: at the boot the guest has to take everything.
    pub async fn start(
        network: Network,
        nics: Nics,
        agent: Agent,
        gone: watch::Receiver<Option<VmmEnd>>,
    ) -> Result<Self, FollowError> {
        let (follower, queue) = mpsc::channel(16);
        let task = Task::begin(network, nics, agent, gone).await?;
        tokio::spawn(task.serve(queue));
        Ok(Self(follower))
    }

    /// Waits until the guest has what is in the namespace now, as far as it can have it.
    pub async fn settle(&self) {
        let settled = async {
            let (done, settled) = oneshot::channel();
            // Without the task the VMM is gone, which others tell.
            if self.0.send(done).await.is_ok() {
                settled.await.ok();
            }
        };
        if timeout(SETTLE, settled).await.is_err() {
            let seconds = SETTLE.as_secs();
            log::warn!("network: the guest has not caught up with the pod's within {seconds} s");
        }
    }

    /// Waits until nothing more is added to the namespace, after the VMM's end.
    pub async fn ended(&self) {
        if timeout(END, self.0.closed()).await.is_err() {
            log::warn!("network: the pod's is still followed after the VMM's end");
        }
    }
}

/// A link that the guest has.
struct Carried {
    pair: Pair,
    slot: u32,
    /// Unless the link is used directly.
    redirect: Option<Redirect>,
}

/// What the guest was not given of a look.
#[derive(Default)]
struct Complaints {
    /// Because no guest can have it.
    unfit: Vec<String>,
    /// Because something went wrong that may go right another time.
    failed: Vec<String>,
}

/// When to try again what failed.
#[derive(Clone, Copy)]
struct Retry {
    at: Instant,
    /// How long was waited for it.
    pause: Duration,
}

impl Retry {
    /// After a failure, and `earlier` ones in a row.
    fn after(earlier: Option<Self>) -> Self {
        let longer = earlier.map_or(*RETRY.start(), |earlier| earlier.pause * 2);
        let pause = longer.min(*RETRY.end());
        let at = Instant::now() + pause;
        Self { at, pause }
    }
}

struct Task {
    netns: Arc<Netns>,
    events: Events,
    nics: Nics,
    agent: Agent,
    gone: watch::Receiver<Option<VmmEnd>>,
    carried: Vec<Carried>,
    /// What the guest has been given.
    given: Vec<Item>,
    /// Links that the guest could not be given, and why. They are tried again when there is room,
    /// they have changed or some time has passed: each attempt is a change of the namespace, too.
    left_out: Vec<(Link, String)>,
    /// What was wrong after the last change.
    complaints: Vec<String>,
    /// Only after a failure.
    retry: Option<Retry>,
}

impl Task {
    /// With the links that the guest has booted with, in the first slots.
    async fn begin(
        network: Network,
        nics: Nics,
        agent: Agent,
        gone: watch::Receiver<Option<VmmEnd>>,
    ) -> Result<Self, FollowError> {
        let Network {
            netns,
            events,
            scan,
            redirects,
            ..
        } = network;
        let links = match scan.links.is_empty() {
            true => Vec::new(),
            false => agent.links().await?,
        };
        let pairs = mirror::pair(&scan.links, &links)?;
        let carried = pairs.into_iter().zip(redirects).zip(0..);
        let carried = carried.map(|((pair, redirect), slot)| Carried {
            pair,
            slot,
            redirect,
        });
        let mut task = Self {
            netns: Arc::new(netns),
            events: Events::new(events).map_err(NetworkError::Follow)?,
            nics,
            agent,
            gone,
            carried: carried.collect(),
            given: Vec::new(),
            left_out: Vec::new(),
            complaints: Vec::new(),
            retry: None,
        };
        if let Some(complaint) = task.give(&scan, Some(links)).await?.into_iter().next() {
            return Err(NetworkError::Refused(complaint).into());
        }
        if let Some(left_out) = scan.filters.as_ref().and_then(Filters::left_out) {
            log::warn!("network: {left_out}");
            task.complaints.push(left_out);
        }
        Ok(task)
    }

    async fn serve(mut self, mut queue: mpsc::Receiver<oneshot::Sender<()>>) {
        let mut next_look = Instant::now();
        let mut gone = self.gone.clone();
        loop {
            let retry_at = self.retry.map_or(next_look, |retry| retry.at);
            let asked = tokio::select! {
                biased;
                _ = vmm_process::end(&mut gone) => break,
                asked = queue.recv() => match asked {
                    Some(done) => Some(done),
                    None => break,
                },
                () = sleep_until(retry_at), if self.retry.is_some() => None,
                () = self.changed_after(next_look) => None,
            };
            // What was told until now the look will see, and what comes later wakes it again.
            let untold = self.netns.may_have_new_filters(&self.events);
            if self.events.drain() || asked.is_none() || self.retry.is_some() || untold {
                self.catch_up().await;
            }
            match asked {
                // Whoever asked may have given up.
                Some(done) => drop(done.send(())),
                None => next_look = Instant::now() + PACE,
            }
        }
        // Whoever waits for the end waits for the queue's.
        drop(self);
        drop(queue);
    }

    /// Waits for a change, and in any case until then.
    async fn changed_after(&self, then: Instant) {
        sleep_until(then).await;
        self.events.changed().await;
    }

    /// Gives the guest what the namespace has now, and says what it could not be given, once.
    async fn catch_up(&mut self) {
        let due = self.retry.is_some_and(|retry| retry.at <= Instant::now());
        if due {
            self.left_out.clear();
        }
        let looked = self.look().await;
        let Complaints { unfit, failed } = looked.unwrap_or_else(|error| Complaints {
            failed: vec![chain(&error)],
            ..Complaints::default()
        });
        self.retry = match self.retry {
            _ if failed.is_empty() => None,
            Some(retry) if !due => Some(retry),
            earlier => Some(Retry::after(earlier)),
        };
        if self.is_over() {
            return;
        }
        let complaints = [unfit, failed].concat();
        for complaint in &complaints {
            if !self.complaints.contains(complaint) {
                log::warn!("network: {complaint}");
            }
        }
        self.complaints = complaints;
    }

    async fn look(&mut self) -> Result<Complaints, FollowError> {
        let (scan, redirected) = self.blocking(Netns::look).await?;
        let unfit = scan.problems.iter().map(|problem| chain(problem));
        let filters = scan.filters.as_ref();
        let mut complaints = Complaints {
            unfit: unfit.chain(filters.and_then(Filters::left_out)).collect(),
            failed: Vec::new(),
        };
        let carried = std::mem::take(&mut self.carried);
        let is_kept = |link: &Carried| match link.redirect {
            Some(_) => redirected.contains(&link.pair.host),
            None => scan.links.iter().any(|there| there.index == link.pair.host),
        };
        let (kept, lost) = carried.into_iter().partition(is_kept);
        self.carried = kept;
        if !lost.is_empty() {
            self.left_out.clear();
        }
        for link in lost {
            if let Err(error) = self.unplug(link).await {
                complaints.failed.push(chain(&error));
            }
        }
        self.left_out.retain(|(link, _)| scan.links.contains(link));
        for link in &scan.links {
            // Its taps went with the VMM: nothing is to be made anew.
            if self.is_over() {
                return Ok(complaints);
            }
            let known = self.carried.iter().any(|old| old.pair.host == link.index);
            if known || self.left_out.iter().any(|(out, _)| out == link) {
                continue;
            }
            if let Err(error) = self.plug(link).await {
                let complaint = format!("link {}: {}", link.name, chain(&error));
                self.left_out.push((link.clone(), complaint));
            }
        }
        let left_out = self.left_out.iter();
        let left_out = left_out.map(|(_, complaint)| complaint.clone());
        complaints.failed.extend(left_out);
        match self.give(&scan, None).await {
            Ok(refused) => complaints.failed.extend(refused),
            Err(error) => complaints.failed.push(chain(&error)),
        }
        Ok(complaints)
    }

    /// Gives the guest, whose links may be known, the difference between what it has and the scan;
    /// returns what it refused.
    async fn give(
        &mut self,
        scan: &Scan,
        links: Option<Vec<GuestLink>>,
    ) -> Result<Vec<String>, FollowError> {
        let pairs: Vec<Pair> = self.carried.iter().map(|link| link.pair).collect();
        let mut wanted = mirror::items(scan, &pairs);
        if scan.filters.is_none() {
            let given = self.given.iter();
            let kept = given.filter(|item| item.kind == Kind::Filters).cloned();
            wanted.splice(0..0, kept);
        }
        let difference = Difference::between(&self.given, &wanted);
        if difference.is_empty() {
            return Ok(Vec::new());
        }
        let links = match links {
            Some(links) => links,
            None => self.agent.links().await?,
        };
        let steps = difference.steps(&wanted, &links);
        let changes = steps.iter().map(|step| step.change.clone()).collect();
        let refused = match self.agent.configure_network(changes).await {
            Ok(refusals) => self.by_detours(&steps, refusals).await,
            refused => refused,
        };
        let refusals = match refused {
            Ok(refusals) => refusals,
            Err(error) => {
                difference::doubt(&mut self.given, wanted);
                return Err(error.into());
            }
        };
        let (given, complaints) = difference::outcome(&self.given, wanted, &steps, refusals);
        self.given = given;
        Ok(complaints)
    }

    /// Gives routes whose gateways cannot be reached another way; returns what stays refused.
    async fn by_detours(
        &self,
        steps: &[Step],
        refusals: Vec<NetworkRefusal>,
    ) -> Result<Vec<NetworkRefusal>, AgentError> {
        let (mut stay, mut tried, mut changes) = (Vec::new(), Vec::new(), Vec::new());
        for refusal in refusals {
            let step = steps.get(refusal.change as usize);
            match step.and_then(|step| detour::around(&step.change, &refusal)) {
                Some(detour) => {
                    let own = changes.len() + detour.len() / 2;
                    tried.push((own as u32, refusal.change));
                    changes.extend(detour);
                }
                None => stay.push(refusal),
            }
        }
        if changes.is_empty() {
            return Ok(stay);
        }
        for refusal in self.agent.configure_network(changes).await? {
            let tried = tried.iter().find(|(own, _)| *own == refusal.change);
            if let Some(&(_, change)) = tried {
                stay.push(NetworkRefusal { change, ..refusal });
            }
        }
        Ok(stay)
    }

    fn is_over(&self) -> bool {
        self.gone.borrow().is_some()
    }

    async fn plug(&mut self, link: &Link) -> Result<(), FollowError> {
        let new = link.clone();
        let (nic, redirect) = self.blocking(move |netns| netns.attach(&new)).await?;
        let plugged = match self.nics.plug(nic).await {
            Ok(plugged) => plugged,
            Err(error) => {
                if let Err(error) = self.detach(redirect).await {
                    log::warn!("network: {}", chain(&error));
                }
                return Err(error.into());
            }
        };
        log::info!("network: link {} came", link.name);
        self.carried.push(Carried {
            pair: Pair {
                host: link.index,
                guest: plugged.link.index,
            },
            slot: plugged.slot,
            redirect,
        });
        Ok(())
    }

    async fn unplug(&self, link: Carried) -> Result<(), FollowError> {
        let unplugged = self.nics.unplug(link.slot).await;
        self.detach(link.redirect).await?;
        unplugged?;
        let number = link.pair.host;
        log::info!("network: link number {number}, its redirect or its tap went");
        Ok(())
    }

    async fn detach(&self, redirect: Option<Redirect>) -> Result<(), FollowError> {
        match redirect {
            Some(redirect) => self.blocking(move |netns| netns.detach(redirect)).await,
            None => Ok(()),
        }
    }

    /// Does `work` in the namespace, off the async threads.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Netns) -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, FollowError> {
        let netns = self.netns.clone();
        let done = tokio::task::spawn_blocking(move || work(&netns)).await;
        done.map_err(|_| FollowError::Panicked)?
            .map_err(FollowError::from)
    }
}
