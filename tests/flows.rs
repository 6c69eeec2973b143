//! What a company does with Offhook, from its first request to a call in its history, through the whole program: API or
//! set-up file, door, desk, calls and store on one side, simulated providers on the other, real sockets between.

#[path = "common/stores.rs"]
mod stores;

mod common;

#[path = "common/receiver.rs"]
mod receiver;

#[path = "common/whole.rs"]
mod whole;

#[path = "flows/after.rs"]
mod after;
#[path = "flows/dial.rs"]
mod dial;
#[path = "flows/hotel.rs"]
mod hotel;
#[path = "flows/seed.rs"]
mod seed;
#[path = "flows/sms.rs"]
mod sms;
#[path = "flows/tools.rs"]
mod tools;
#[path = "flows/vars.rs"]
mod vars;
