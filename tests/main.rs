//! What adl promises, tried on the real thing. One module for each kind of promise.
//!
//! The tests run as root and as an ordinary user, each in a process of its own that `run.rs`
//! starts. What a machine or a user can't give makes a test say why it is skipped, unless
//! `ADL_EXPECT` names it; see [`harness::needs`].

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod alive;
mod archives;
mod arguments;
mod attributes;
mod blanks;
mod cargo;
mod census;
mod cgroups;
mod cli;
mod cli_ports;
mod collector;
mod copies;
mod counts;
mod cpu_time;
mod cycles;
mod defaults;
mod delegation;
mod dependent;
mod descriptors;
mod devices;
mod docker_words;
mod empty_namespace;
mod ends;
mod etc_files;
mod event_loop;
mod evil;
mod examples;
mod exec;
mod expect;
mod figures;
mod file_attacks;
mod file_systems;
mod files;
mod follows;
mod forks;
mod harness;
mod helper;
mod host_image;
mod host_paths;
mod ids;
mod image_fixtures;
mod images;
mod images_hostile;
mod images_oci;
mod images_registry;
mod images_trees;
mod inheritance;
mod init;
mod injected;
mod input;
mod isolation;
mod jobs;
mod join;
mod keeping;
mod kill_all;
mod kills;
mod layout;
mod lifetime;
mod limits;
mod links;
mod long;
mod metrics;
mod mounts;
mod network;
mod output;
mod own_namespaces;
mod pool;
mod port_attacks;
mod ports;
mod programs;
mod readme;
mod records;
mod relays;
mod report;
mod reset;
mod results;
mod shares;
mod sharing;
mod snapshots;
mod spans;
mod spare;
mod starts;
mod stdio;
mod streaming;
mod streams;
mod subordinate_ids;
mod suite;
mod sys_files;
mod terminal;
mod tracing;
mod trees;
