//! Holds the answers of both runtimes against each other and against the list of
//! differences that are wanted.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Command;
use std::thread;

use husk_tests::containerd::Events;
use husk_tests::ledger::Ledger;
use husk_tests::{Node, Runtime, process};
use serde_json::Value;

use super::differences::{self, Excuse};
use super::drive::{self, Answers};
use super::table::{Group, Outcome};

/// Compares every case of a topic.
///
/// # Panics
/// If a case differs that is not listed, a listed one does not differ or not as listed, or
/// a group leaves something behind.
#[track_caller]
pub fn compare(topic: &str, groups: &[Group]) {
    let _node = Node::enter();
    delegate_cgroups();
    let mut judge = Judge::new(topic);
    let events = Events::subscribe();
    let mut asked = Vec::new();
    for group in groups {
        let before = Ledger::take();
        let [mut runc, husk] = both(group);
        for _ in 0..2 {
            if !judge.doubts(group, &runc, &husk) {
                break;
            }
            runc = runc_again(group);
        }
        match (runc, husk) {
            (Ok(runc), Ok(husk)) => {
                for (name, runc, husk) in pairs(group, &runc, &husk) {
                    judge.case(&name, runc, husk);
                }
                asked.push((group, [runc, husk]));
            }
            (Err(reason), _) | (_, Err(reason)) => {
                judge.fails(&format!("--- {topic}/{} broke off: {reason}", group.name));
            }
        }
        for leak in before.leaks() {
            judge.fails(&format!("--- {topic}/{} left behind: {leak}", group.name));
        }
    }
    let events = by_container(&events.tasks());
    for (group, answers) in asked {
        let [runc, husk] = answers.map(|answers| events.get(&answers.container).cloned());
        let [runc, husk] = [runc, husk].map(|events| Outcome(events.unwrap_or_default()));
        judge.case(&format!("{}: events", group.name), &runc, &husk);
    }
    judge.finish();
}

/// As on every host with systemd, a cgroup namespace is a border that limits are not changed
/// across (`nsdelegate`, the kernel's `admin-guide/cgroup-v2`). Each mount of cgroup2 in the host's
/// own cgroup namespace, as runc makes it for a container without one, takes that away from all.
fn delegate_cgroups() {
    let mut remount = Command::new("mount");
    remount.args([
        "-o",
        "remount,nsdelegate,memory_recursiveprot",
        "/sys/fs/cgroup",
    ]);
    process::run(remount).succeeded();
}

/// The verdict on a topic, as far as it is known.
struct Judge<'a> {
    topic: &'a str,
    excuses: Vec<Excuse>,
    compared: usize,
    excused: usize,
    failures: usize,
}

impl<'a> Judge<'a> {
    fn new(topic: &'a str) -> Self {
        Self {
            topic,
            excuses: differences::of_topic(topic),
            compared: 0,
            excused: 0,
            failures: 0,
        }
    }

    /// Whether runc may have to answer for what is wrong with a group.
    fn doubts(
        &self,
        group: &Group,
        runc: &Result<Answers, String>,
        husk: &Result<Answers, String>,
    ) -> bool {
        match (runc, husk) {
            (Ok(runc), Ok(husk)) => pairs(group, runc, husk)
                .any(|(name, runc, husk)| self.fault(&name, runc, husk).is_some()),
            (runc, husk) => runc.is_err() && husk.is_ok(),
        }
    }

    /// Compares one case.
    fn case(&mut self, name: &str, runc: &Outcome, husk: &Outcome) {
        self.compared += 1;
        self.excused += usize::from(self.excuse(name).is_some());
        if let Some(fault) = self.fault(name, runc, husk) {
            self.fails(&fault);
        }
    }

    fn excuse(&self, name: &str) -> Option<&Excuse> {
        let case = format!("{}/{name}", self.topic);
        self.excuses.iter().find(|excuse| excuse.case == case)
    }

    /// What is wrong with a case, if anything.
    fn fault(&self, name: &str, runc: &Outcome, husk: &Outcome) -> Option<String> {
        let case = format!("{}/{name}", self.topic);
        fault(&case, self.excuse(name), runc, husk)
    }

    /// Notes a failure and shows it at once: a topic may take minutes.
    fn fails(&mut self, fault: &str) {
        self.failures += 1;
        say(&format!("\n{fault}\n"));
    }

    /// # Panics
    /// If anything failed.
    #[track_caller]
    fn finish(self) {
        let (compared, excused) = (self.compared, self.excused);
        say(&format!("{compared} cases, {excused} listed; "));
        assert_eq!(
            self.failures, 0,
            "failures among {compared} cases of {}, shown above",
            self.topic
        );
    }
}

/// Prints past the test runner, which would keep it to itself.
fn say(text: &str) {
    let mut stdout = std::io::stdout();
    drop(stdout.write_all(text.as_bytes()));
    drop(stdout.flush());
}

/// Both runtimes' answers, runc's first, or what a command said that did not end in time.
/// They run side by side: the node has two CPUs.
fn both(group: &Group) -> [Result<Answers, String>; 2] {
    thread::scope(|scope| {
        Runtime::BOTH
            .map(|runtime| scope.spawn(move || drive::ask(group, runtime)))
            .map(|answers| answers.join().map_err(said))
    })
}

/// runc's answers once more, for where they were not what ours are measured with: its shim tells
/// of an exit before `ctr` has read everything, and containerd 1.7 then closes the fifos.
fn runc_again(group: &Group) -> Result<Answers, String> {
    thread::scope(|scope| scope.spawn(|| drive::ask(group, Runtime::Runc)).join()).map_err(said)
}

/// A panic's words.
fn said(panic: Box<dyn Any + Send>) -> String {
    panic.downcast_ref::<String>().cloned().unwrap_or_else(|| {
        let text = panic.downcast_ref::<&str>().copied();
        text.unwrap_or("a panic").to_owned()
    })
}

/// Each case's name and the two outcomes.
fn pairs<'a>(
    group: &Group,
    runc: &'a Answers,
    husk: &'a Answers,
) -> impl Iterator<Item = (String, &'a Outcome, &'a Outcome)> {
    // Both have answers to the same cases.
    let pairs = runc.cases.iter().zip(husk.cases.values());
    pairs.map(|((case, runc), husk)| (format!("{}: {case}", group.name), runc, husk))
}

/// What is wrong with a case, if anything.
fn fault(case: &str, excuse: Option<&Excuse>, runc: &Outcome, husk: &Outcome) -> Option<String> {
    let equal = runc == husk || husk.tells_more_than(runc) || runc.loses_some_of(husk);
    let wrong = match (excuse, equal) {
        (None, true) => return None,
        (None, false) => "differs".to_owned(),
        (Some(excuse), true) => format!("is listed under {:?} but does not differ", excuse.id),
        (Some(excuse), false) if !excuse.describes(&husk.0) => format!(
            "is listed under {:?} with another answer of ours: {:?}",
            excuse.id, excuse.husk
        ),
        (Some(_), false) => return None,
    };
    let mut text = format!("--- {case} {wrong}");
    for (name, Outcome(outcome)) in [("runc", runc), ("husk", husk)] {
        // Writing to a string cannot fail.
        write!(text, "\n{name}: {}", outcome.replace('\n', "\n      ")).ok();
    }
    Some(text)
}

/// The events of each container, a line each: the topic and what is the same everywhere.
fn by_container(events: &[(String, Value)]) -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    for (topic, event) in events {
        let Some(container) = event["container_id"].as_str() else {
            continue;
        };
        let lines = found.entry(container.to_owned()).or_default();
        lines.push_str(topic);
        // An exit is of the init, whose id is the container's, or of an exec.
        for key in ["id", "exec_id", "exit_status"] {
            let value = &event[key];
            if !value.is_null() && *value != *container {
                write!(lines, " {key}={value}").ok();
            }
        }
        lines.push('\n');
    }
    found
}
