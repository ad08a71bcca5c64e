//! Every end-to-end test, one module a topic, one executable so that the node boots once.

mod boot;
mod boot_refusals;
mod chaos;
mod comparison;
mod ctr_exec;
mod ctr_hooks;
mod ctr_metrics;
mod ctr_mounts;
mod ctr_pause;
mod ctr_run;
mod ctr_signals;
mod ctr_stdin;
mod ctr_stdio;
mod ctr_tty;
mod ctr_update;
mod failures;
mod isolation;
mod refusals;
mod replay;
mod task_api;
