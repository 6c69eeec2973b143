//! Ringostat and Binotel over real sockets: each provider against its simulator, both ways.

#[path = "pbx/binotel.rs"]
mod binotel;
#[path = "pbx/door.rs"]
mod door;
#[path = "pbx/ringostat.rs"]
mod ringostat;
