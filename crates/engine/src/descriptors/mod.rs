//! Descriptors and the open file descriptions behind them.
//!
//! At a checkpoint every descriptor of every process is duplicated into the supervisor (`pidfd_getfd(2)`), grouped by open
//! file description (`kcmp(2)`), and each description is captured once by the module of its kind. At a restart the keeper
//! opens each description once, on a descriptor above the highest that any process of the program uses; the processes
//! inherit those, put them in place with `dup3(2)`, and close the rest.
