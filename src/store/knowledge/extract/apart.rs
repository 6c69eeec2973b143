//! The other side of [`super::Reader`]: a process that reads one file and ends. It gives up all that it does not need
//! before it sees the first byte.

use std::io::{self, BufWriter, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{Format, LIMIT, MAX_FILE, Patience, read};

/// A library that descends into a nested file needs room: four times what a thread has by default.
const STACK: usize = 8 << 20;
/// What the process may have at most.
const LIMITS: [(Resource, u64); 5] = [
    // All that it maps, the program itself and the allocator's first 128 MB among it.
    (Resource::As, 768 << 20),
    // Seconds. Whoever started it waits no longer either; this is for when that one has died.
    (Resource::Cpu, LIMIT.as_secs() + 1),
    (Resource::Fsize, 0),
    (Resource::Core, 0),
    // The three pipes, and what the loader and the standard library open for a moment.
    (Resource::Nofile, 16),
];

/// Reads a file from standard input and writes its blocks, or why there are none, to standard output as JSON.
///
/// An allocator lays out its memory before `main`, by the limits that it finds: the program limits itself, starts itself
/// anew, and reads then.
pub fn serve(format: Format) -> ExitCode {
    let done = if is_confined() { answer(format) } else { confine().and_then(|()| Err(again())) };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("offhook: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn is_confined() -> bool {
    LIMITS.iter().all(|(resource, most)| getrlimit(*resource).maximum.is_some_and(|maximum| maximum <= *most))
}

/// Gives up what a reader of files does not need, for good.
pub(super) fn confine() -> io::Result<()> {
    for (resource, most) in LIMITS {
        let most = getrlimit(resource).maximum.map_or(most, |maximum| maximum.min(most));
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    #[cfg(target_os = "linux")]
    {
        rustix::thread::set_no_new_privs(true)?;
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    }
    Ok(())
}

/// Becomes the same program with the same arguments; returns only if it cannot.
fn again() -> io::Error {
    match std::env::current_exe() {
        Ok(program) => Command::new(program).args(std::env::args_os().skip(1)).exec(),
        Err(fault) => fault,
    }
}

fn answer(format: Format) -> io::Result<()> {
    let mut file = Vec::new();
    io::stdin().lock().take(MAX_FILE as u64).read_to_end(&mut file)?;
    let patience = Patience::of(LIMIT);
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(move || read(format, &file, patience))?;
    let told = thread.join().map_err(|_| io::Error::other("the file cannot be made sense of"))?;
    let mut out = BufWriter::new(io::stdout().lock());
    serde_json::to_writer(&mut out, &told)?;
    out.flush()
}
