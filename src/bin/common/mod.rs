//! What the binaries `lstm` and `lstm-bench` share.

#![allow(dead_code, reason = "each binary uses a part")]

pub(crate) mod failure;
pub(crate) mod precision;
pub(crate) mod random;
pub(crate) mod spec_text;
pub(crate) mod table;
pub(crate) mod timing;
pub(crate) mod units;
pub(crate) mod verify;
