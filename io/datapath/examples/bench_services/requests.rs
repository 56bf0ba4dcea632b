//! Requests of one byte between two namespaces, and how many there are in a second. Both ends share a CPU.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::PORT;
use crate::sockets::{connect, pin, use_cubic};
use crate::support::Namespace;

const CPU: usize = 1;

/// What requests come on.
#[derive(Clone, Copy)]
pub enum Asks {
    /// Each on a connection of its own.
    New,
    /// All on one.
    Kept,
}

/// Requests a second: each asks one byte and gets one.
pub fn requests(asks: Asks, client: &Namespace, server: &Namespace, to: SocketAddr, time: Duration) -> f64 {
    let listener = server.run(|| TcpListener::bind(("::", PORT)).expect("a free port"));
    use_cubic(listener.as_fd());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(CPU);
            let mut byte = [0];
            while let Ok((mut stream, _)) = listener.accept() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            }
        });
        let asking = scope.spawn(|| {
            client.enter();
            pin(CPU);
            let rate = ask(asks, to, time);
            stop.store(true, Ordering::Relaxed);
            // Wakes a server that waits for another connection.
            drop(connect(to));
            rate
        });
        asking.join().expect("the client does not panic")
    })
}

fn ask(asks: Asks, to: SocketAddr, time: Duration) -> f64 {
    let connect = || connect(to).expect("the server listens");
    let (start, mut done, mut byte, mut kept) = (Instant::now(), 0u32, [0], None);
    while start.elapsed() < time {
        let mut stream = kept.take().unwrap_or_else(connect);
        stream.write_all(&byte).and_then(|()| stream.read_exact(&mut byte)).expect("the server answers");
        done += 1;
        if matches!(asks, Asks::Kept) {
            kept = Some(stream);
        }
    }
    f64::from(done) / start.elapsed().as_secs_f64()
}
