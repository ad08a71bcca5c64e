//! Everybody who takes part in a task's life, killed at each step of it.
//!
//! Whoever dies and whenever: the task has exactly one exit where it lived, its client
//! can remove it, and nothing is left on the host.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use husk_tests::containerd::{self, Events};
use husk_tests::hold::{self, Hold};
use husk_tests::process::{self, DEADLINE};
use husk_tests::{Container, Node, Output, Running, Task, ctr};
use serde_json::Value;
use tempfile::TempDir;

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// containerd; it is started again.
    Containerd,
    /// The pod's shim.
    Shim,
    /// The virtual machine monitor.
    Vmm,
    /// The guest with the agent: its memory is overwritten.
    Guest,
}

/// How far the task has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Create is under way: the guest's kernel boots.
    Create,
    /// Create was answered, Start not asked for.
    Created,
    /// Its process runs.
    Started,
    /// A second process runs in it.
    Exec,
    /// It was killed and its exit told.
    Killed,
    /// Delete was asked for and not answered.
    Delete,
}

use Step::{Create, Created, Delete, Exec, Killed, Started};
use Victim::{Containerd, Guest, Shim, Vmm};

const STEPS: [Step; 6] = [Create, Created, Started, Exec, Killed, Delete];

#[test]
fn a_few_deaths() {
    deaths(&[
        (Containerd, Created),
        (Containerd, Exec),
        (Shim, Create),
        (Shim, Delete),
        (Vmm, Created),
        (Guest, Started),
    ]);
}

#[test]
#[ignore = "full"]
fn containerd_dies_at_every_step() {
    deaths(&STEPS.map(|step| (Containerd, step)));
}

#[test]
#[ignore = "full"]
fn the_shim_dies_at_every_step() {
    deaths(&STEPS.map(|step| (Shim, step)));
}

#[test]
#[ignore = "full"]
fn the_vmm_dies_at_every_step() {
    deaths(&STEPS.map(|step| (Vmm, step)));
}

#[test]
#[ignore = "full"]
fn the_guest_dies_at_every_step() {
    deaths(&STEPS.map(|step| (Guest, step)));
}

/// Goes through all cases, then fails if one did: the table is worth more than its first
/// failure.
#[track_caller]
fn deaths(cases: &[(Victim, Step)]) {
    let failed: Vec<String> = cases
        .iter()
        .filter(|(victim, step)| {
            eprintln!("--- {victim:?} dies at {step:?}");
            catch_unwind(AssertUnwindSafe(|| death(*victim, *step))).is_err()
        })
        .map(|case| format!("{case:?}"))
        .collect();
    assert!(failed.is_empty(), "failed: {}", failed.join(", "));
}

/// One case of the table.
fn death(victim: Victim, step: Step) {
    let node = Node::enter();
    let mut events = Events::subscribe();
    let mut life = Life::begin();
    life.come_to(step, victim, &node, &mut events);

    let mut seen = Vec::new();
    if victim == Containerd {
        let away = containerd::kill_9();
        seen = events.tasks_until_its_death();
        away.end();
        events = Events::subscribe();
    } else {
        life.kill(victim);
    }
    let lived = matches!(step, Started | Exec);
    if lived && victim != Containerd {
        // Told without anybody asking.
        events.wait_for("/tasks/exit");
    }
    let id = life.end();
    if lived && victim == Containerd {
        events.wait_for(&exit_of(&id));
    }
    seen.extend(events.tasks());
    let exits = count(&seen, "/tasks/exit", &id);
    let due = match step {
        // Whether a task that never ran has an exit is containerd's affair.
        Create | Created => 0..=1,
        // containerd tells an exit when it loses a shim, also if the shim had told it.
        Killed | Delete if victim == Shim => 1..=2,
        Started | Exec | Killed | Delete => 1..=1,
    };
    assert!(due.contains(&exits), "{exits} exits: {seen:?}");
}

/// How `ctr` prints the exit of a container's init.
fn exit_of(id: &str) -> String {
    format!("/tasks/exit {{\"container_id\":\"{id}\",\"id\":\"{id}\"")
}

/// The events of that topic that are about the container's init.
fn count(events: &[(String, Value)], topic: &str, id: &str) -> usize {
    events
        .iter()
        .filter(|(event, fields)| event == topic && fields["id"] == id)
        .count()
}

/// A task on its way.
struct Life {
    hold: Hold,
    task: Task,
    run: Option<Running>,
    /// Clients that may hang when somebody dies.
    others: Vec<Running>,
    /// Where `ctr` makes the exec's fifos: of a lost task it leaves them behind.
    fifos: TempDir,
}

impl Life {
    fn begin() -> Self {
        let fifos = tempfile::tempdir_in("/var/tmp").expect("a temporary directory");
        let container = Container::husk(&["sleep", "infinity"])
            .with(hold::FLAGS)
            .with(&["--null-io"]);
        Self {
            hold: Hold::install(),
            run: Some(Running::start(container.command(&["--detach"]))),
            task: container.task(),
            others: Vec::new(),
            fifos,
        }
    }

    #[track_caller]
    fn come_to(&mut self, step: Step, victim: Victim, node: &Node, events: &mut Events) {
        if step == Create {
            let booting = || node.log().contains("timeline kernel_entered=");
            return until("the guest's kernel runs", booting);
        }
        self.hold.wait();
        if step == Created {
            return;
        }
        self.hold.release();
        if let Some(run) = self.run.take() {
            run.finish().succeeded();
        }
        match step {
            Create | Created | Started => {}
            Exec => {
                let fifos = self.fifos.path().to_string_lossy().into_owned();
                let mut exec = Command::new("ctr");
                exec.args(["task", "exec", "--exec-id", "second", "--fifo-dir", &fifos])
                    .args([self.task.id(), "sh", "-c", "echo ready; exec sleep 1000"]);
                let mut exec = Running::start(exec);
                exec.wait_for("ready");
                self.others.push(exec);
            }
            Killed | Delete => {
                self.task.kill("KILL");
                self.task.wait();
                // Now: it may come while nobody listens, or from who is stopped next.
                events.wait_for(&exit_of(self.task.id()));
            }
        }
        if step == Delete {
            // Stopped, so that the request is on its way and not answered. Of a machine
            // that has gone with its last container there is nobody to stop.
            for pid in victim.pids() {
                signal("STOP", pid);
            }
            let mut delete = Command::new("ctr");
            delete.args(["task", "delete", self.task.id()]);
            self.others.push(Running::start(delete));
            // Nothing tells when a request has come to somebody who is stopped.
            thread::sleep(Duration::from_millis(500));
        }
    }

    #[track_caller]
    fn kill(&self, victim: Victim) {
        for pid in victim.pids() {
            if victim == Guest {
                overwrite_memory(pid);
                signal("CONT", pid);
                // An idle guest notices when it next has something to do.
                ctr(&["task", "ps", self.task.id()]);
            } else {
                signal("KILL", pid);
            }
        }
    }

    /// Removes the task as its client would, and gives its id.
    #[track_caller]
    fn end(mut self) -> String {
        let id = self.task.id().to_owned();
        self.others.clear();
        self.hold.release();
        self.run = None;
        until("the task is removed", || {
            let output = ctr(&["task", "delete", "--force", &id]);
            output.code == 0 || absent(&output)
        });
        until("the container is removed", || {
            let output = ctr(&["container", "delete", &id]);
            output.code == 0 || absent(&output)
        });
        id
    }
}

fn absent(output: &Output) -> bool {
    output.stderr.contains("not found")
}

impl Victim {
    /// Its process; none if it is gone already.
    #[track_caller]
    fn pids(self) -> Vec<u32> {
        let pids = match self {
            Containerd => containerd::pid().into_iter().collect(),
            Shim => process::named("containerd-shim-rust-v2"),
            Vmm | Guest => process::named("husk-vmm"),
        };
        assert!(pids.len() <= 1, "{self:?}: {pids:?}");
        pids
    }
}

#[track_caller]
fn signal(name: &str, pid: u32) {
    let mut kill = Command::new("kill");
    kill.args([&format!("-{name}"), &pid.to_string()]);
    // Gone meanwhile is as good.
    process::run(kill);
}

/// Fills the guest's RAM with an instruction that x86 does not define, kernel and agent
/// and all: the machine crashes as broken hardware would make it.
#[track_caller]
fn overwrite_memory(vmm: u32) {
    const RAM: u64 = 64 << 20;
    let maps = fs::read_to_string(format!("/proc/{vmm}/maps")).unwrap_or_default();
    if maps.is_empty() {
        // Gone meanwhile, with its container.
        return;
    }
    let start = maps.lines().find_map(|line| {
        let (from, rest) = line.split_once('-')?;
        let (to, _) = rest.split_once(' ')?;
        let [from, to] = [from, to].map(|text| u64::from_str_radix(text, 16).ok());
        (to? - from? == RAM).then_some(from?)
    });
    let start = start.unwrap_or_else(|| panic!("no mapping of the guest's RAM in\n{maps}"));
    let memory = format!("/proc/{vmm}/mem");
    let Ok(memory) = File::options().write(true).open(memory) else {
        return;
    };
    let undefined = [0x0f, 0x0b].repeat(512 << 10);
    for at in (start..start + RAM).step_by(undefined.len()) {
        // The machine may crash, and end, in the middle of it.
        if memory.write_all_at(&undefined, at).is_err() {
            break;
        }
    }
}

#[track_caller]
fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not by the deadline: {what}");
        // Neither the log nor containerd's clean-up can be waited for.
        thread::sleep(Duration::from_millis(20));
    }
}
