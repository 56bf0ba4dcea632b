//! The running side of the controllers: watches feed caches, changes queue looks, looks become writes. Decisions
//! are made elsewhere.

mod cache;
mod dispatch;
mod execute;
mod look;
mod pending;
mod pulse;
mod queue;

use std::sync::Arc;

use futures::future::join_all;
use kube::Client;
use tokio::sync::Semaphore;

pub use cache::Cache;
pub use execute::Executor;

use dispatch::Work;
use look::World;
use queue::Queue;

const LOOKS_AT_ONCE: usize = 64;

/// Runs all controllers and the scheduler for as long as it is polled.
pub async fn run(controllers: Client, scheduler: Client) {
    let queue = Queue::<Work>::new();
    let world = Arc::new(World::new(&controllers, scheduler, queue.clone()));
    let pulse = world.pulse().follow(controllers.clone());
    let follow = world.follow(controllers.clone());
    let work = async {
        // A controller that has not seen everything would make it a second time.
        world.wait_synced().await;
        let permits = Arc::new(Semaphore::new(LOOKS_AT_ONCE));
        loop {
            let permit = permits.clone().acquire_owned().await;
            let work = queue.take().await;
            let (world, queue) = (world.clone(), queue.clone());
            tokio::spawn(async move {
                let ended = world.look(&work).await;
                queue.done(&work, ended);
                drop(permit);
            });
        }
    };
    futures::future::join3(join_all(follow), pulse, work).await;
}
