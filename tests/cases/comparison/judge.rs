//! Holds the answers of both runtimes against each other and against the list of
//! differences that are wanted.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::thread::{self, ScopedJoinHandle};

use husk_tests::containerd::Events;
use husk_tests::ledger::Ledger;
use husk_tests::{Node, Runtime};
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
    let mut judge = Judge::new(topic);
    let events = Events::subscribe();
    let mut asked = Vec::new();
    for group in groups {
        let before = Ledger::take();
        match both(group) {
            Ok(answers) => {
                for (case, runc, husk) in pairs(&answers) {
                    judge.case(&format!("{}: {case}", group.name), runc, husk);
                }
                asked.push((group, answers));
            }
            Err(reason) => {
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

    /// Compares one case.
    fn case(&mut self, name: &str, runc: &Outcome, husk: &Outcome) {
        let case = format!("{}/{name}", self.topic);
        let excuse = self.excuses.iter().find(|excuse| excuse.case == case);
        self.compared += 1;
        self.excused += usize::from(excuse.is_some());
        if let Some(fault) = fault(&case, excuse, runc, husk) {
            self.fails(&fault);
        }
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
fn both(group: &Group) -> Result<[Answers; 2], String> {
    let [runc, husk] = thread::scope(|scope| {
        Runtime::BOTH
            .map(|runtime| scope.spawn(move || ask(group, runtime)))
            .map(ScopedJoinHandle::join)
    });
    let said = |panic: Box<dyn Any + Send>| {
        panic.downcast_ref::<String>().cloned().unwrap_or_else(|| {
            let text = panic.downcast_ref::<&str>().copied();
            text.unwrap_or("a panic").to_owned()
        })
    };
    Ok([runc.map_err(said)?, husk.map_err(said)?])
}

/// Only runc may lose the end of an output, and is asked again then.
fn ask(group: &Group, runtime: Runtime) -> Answers {
    let mut answers = drive::ask(group, runtime);
    for _ in 0..3 {
        if runtime == Runtime::Husk || !answers.cut {
            break;
        }
        answers = drive::ask(group, runtime);
    }
    answers
}

/// Each case's name and the two outcomes.
fn pairs([runc, husk]: &[Answers; 2]) -> impl Iterator<Item = (&str, &Outcome, &Outcome)> {
    // Both have answers to the same cases.
    let pairs = runc.cases.iter().zip(husk.cases.values());
    pairs.map(|((case, runc), husk)| (*case, runc, husk))
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
