//! Measures durable puts: `cargo run --release -p store --example measure -- [FOLDER]`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use store::{Backend, Embedded, Options, Put, Txn};

const VALUE_BYTES: usize = 1024;
const KEYS: u64 = 100_000;
const ROUND: Duration = Duration::from_secs(3);

struct Writer {
    store: Arc<Embedded>,
    next: AtomicU64,
    done: AtomicU64,
    value: bytes::Bytes,
    until: Instant,
}

/// Puts again as soon as the last put is answered, without a thread of its own.
fn put_again(writer: &Arc<Writer>) {
    if Instant::now() >= writer.until {
        return;
    }
    let n = writer.next.fetch_add(1, Ordering::Relaxed);
    let key = (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % KEYS;
    let put = Put { stamp: Some(100), ..Put::new(format!("/registry/pods/default/{key:08}"), writer.value.clone()) };
    let again = writer.clone();
    let done = Box::new(move |outcome: Result<store::Commit, store::Error>| {
        outcome.expect("puts succeed");
        again.done.fetch_add(1, Ordering::Relaxed);
        put_again(&again);
    });
    writer.store.submit(Txn::new().put(put), done);
}

fn cpu_us() -> u64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    (ticks(11) + ticks(12)) * 10_000
}

fn main() {
    let folder = std::env::args().nth(1).map_or_else(|| std::env::temp_dir().join("store-measure"), Into::into);
    let opened = Instant::now();
    let (store, recovered) = Embedded::open(&folder, Options::default()).expect("the folder can be opened");
    println!("opened in {:?}: {recovered:?}", opened.elapsed());
    let store = Arc::new(store);
    for outstanding in [1u32, 16, 256, 1024] {
        let (start, cpu) = (Instant::now(), cpu_us());
        let writer = Arc::new(Writer {
            store: store.clone(),
            next: AtomicU64::new(u64::from(outstanding) << 40),
            done: AtomicU64::new(0),
            value: vec![b'x'; VALUE_BYTES].into(),
            until: start + ROUND,
        });
        (0..outstanding).for_each(|_| put_again(&writer));
        while Arc::strong_count(&writer) > 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (puts, seconds) = (writer.done.load(Ordering::Relaxed).max(1), start.elapsed().as_secs_f64());
        println!(
            "{outstanding:5} outstanding: {:8.0} puts/s, {:6.1} us each, {:5.2} us CPU per put",
            puts as f64 / seconds,
            seconds * 1e6 * f64::from(outstanding) / puts as f64,
            (cpu_us() - cpu) as f64 / puts as f64
        );
    }
    let mut serial: Vec<Duration> = (0..5000u32)
        .map(|n| {
            let start = Instant::now();
            store.txn(Txn::new().put(Put::new(format!("serial{n}"), vec![b'x'; VALUE_BYTES]))).wait().expect("puts");
            start.elapsed()
        })
        .collect();
    serial.sort();
    println!("serial from another thread: p50 {:?}, p99 {:?}", serial[2500], serial[4950]);
    println!("{:?}", store.status());
}
