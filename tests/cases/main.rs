//! Every end-to-end test, one module a topic, one executable so that the node boots once.

mod boot;
mod boot_refusals;
mod ctr_exec;
mod ctr_mounts;
mod ctr_run;
mod ctr_signals;
mod ctr_stdin;
mod ctr_tty;
mod failures;
mod isolation;
mod refusals;
