//! Terminals: `ctr run --tty` and `ctr task exec --tty`.

use husk_tests::tty::Terminal;
use husk_tests::{Container, Node, Runtime};

/// The program waits for the size itself: `ctr` sends it some time after the start.
const WAIT_FOR_SIZE: &str = "until [ \"$(stty size 2>&1)\" = '33 99' ]; do sleep 1; done";

#[test]
fn a_terminal_is_a_terminal_and_has_the_windows_size() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let script = format!("tty; {WAIT_FOR_SIZE}; echo sized; exit 9");
        let container = Container::new(runtime, &["sh", "-c", &script]);
        let mut terminal = Terminal::start(&container.command(&["--rm", "--tty"]), 33, 99);
        terminal.wait_for("/dev/pts/0");
        terminal.wait_for("sized");
        assert_eq!(terminal.finish(), 9, "{runtime:?}");
    });
}

#[test]
fn a_new_window_size_reaches_the_program_with_a_signal() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let wait = "while :; do sleep 1; done";
        let script = format!("{WAIT_FOR_SIZE}; trap 'stty size; exit 5' WINCH; echo ready; {wait}");
        let container = Container::new(runtime, &["sh", "-c", &script]);
        let mut terminal = Terminal::start(&container.command(&["--rm", "--tty"]), 33, 99);
        terminal.wait_for("ready");
        terminal.resize_until(40, 132, "40 132");
        assert_eq!(terminal.finish(), 5, "{runtime:?}");
    });
}

#[test]
fn control_c_interrupts_the_program_in_the_foreground() {
    let _node = Node::enter();
    let wait = "while :; do sleep 1; done";
    let script = format!("trap 'echo interrupted; exit 3' INT; echo ready; {wait}");
    let container = Container::script(&script);
    let mut terminal = Terminal::start(&container.command(&["--rm", "--tty"]), 24, 80);
    terminal.wait_for("ready");
    terminal.types("\x03");
    terminal.wait_for("interrupted");
    assert_eq!(terminal.finish(), 3);
}

#[test]
fn control_d_ends_an_interactive_shell() {
    let _node = Node::enter();
    // Sized before the shell reads: its line editor forgets a Ctrl-D when a new size
    // arrives within the 20 ms in which it waits for the terminal's answer.
    let script = format!("{WAIT_FOR_SIZE}; exec sh");
    let container = Container::script(&script);
    let mut terminal = Terminal::start(&container.command(&["--rm", "--tty"]), 33, 99);
    terminal.types("PS1=\"$((6 * 7))> \"\n");
    // Not before the prompt: until then the terminal is in canonical mode, and what it
    // makes of Ctrl-D the shell, whose line editor reads raw, does not take for an end.
    terminal.wait_for("42> ");
    terminal.types("\x04");
    assert_eq!(terminal.finish(), 0);
}

#[test]
fn an_exec_has_a_terminal_of_its_own_size() {
    let _node = Node::enter();
    let task = Container::husk(&["sleep", "infinity"]).detach();
    let resized = "until [ \"$(stty size)\" = '40 132' ]; do sleep 1; done";
    let script = format!("tty; {WAIT_FOR_SIZE}; echo sized; {resized}; echo resized; exit 4");
    let mut command = std::process::Command::new("ctr");
    command
        .args(["task", "exec", "--tty", "--exec-id", "terminal", task.id()])
        .args(["sh", "-c", &script]);
    let mut terminal = Terminal::start(&command, 33, 99);
    terminal.wait_for("/dev/pts/");
    terminal.wait_for("sized");
    terminal.resize_until(40, 132, "resized");
    assert_eq!(terminal.finish(), 4);
    drop(terminal);
    task.destroy();
}
