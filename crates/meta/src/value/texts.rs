//! Texts of what many objects share. Siblings share most of their trees, and so do an object and what it was: whatever is
//! written a second time is remembered with its text, and from then on copied.
//!
//! Invariant: what is remembered is held, so that nobody changes it in place, and no other takes its address.

use std::cell::RefCell;

use super::Value;

/// Maps and lists that each thread remembers; those that fall into one place take turns.
const PLACES: usize = 256;
/// Shorter texts are written as fast as they are found.
const BYTES_MIN: usize = 64;
const BYTES_MAX: usize = 2 << 10;

#[derive(Default)]
struct Known {
    /// Of what was written here last.
    address: usize,
    /// What was written twice, with its text; null before.
    value: Value,
    text: Box<[u8]>,
    /// A number in it is a float.
    floats: bool,
    /// It was written again since another one came by.
    used: bool,
}

thread_local! {
    static KNOWN: RefCell<Vec<Known>> = const { RefCell::new(Vec::new()) };
}

fn place(address: usize) -> usize {
    // Allocations are multiples of 16 bytes; those of one size follow each other.
    (address >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (usize::BITS - PLACES.ilog2())
}

/// Appends the text of `value`, a map or list at `address`, if it is known; says then whether a number in it is a float.
pub(super) fn append(value: &Value, address: usize, text: &mut Vec<u8>) -> Option<bool> {
    KNOWN.with_borrow_mut(|all| {
        let known = all.get_mut(place(address)).filter(|known| known.value.is_shared_with(value))?;
        known.used = true;
        text.extend_from_slice(&known.text);
        Some(known.floats)
    })
}

/// Takes notice of a value that was written as `text`.
pub(super) fn note(value: &Value, address: usize, text: &[u8], floats: bool) {
    if !(BYTES_MIN..=BYTES_MAX).contains(&text.len()) {
        return;
    }
    let before = KNOWN.with_borrow_mut(|all| {
        if all.is_empty() {
            all.resize_with(PLACES, Known::default);
        }
        let known = &mut all[place(address)];
        let new = match known.address == address {
            true => Known { address, value: value.clone(), text: text.into(), floats, used: true },
            // One that was copied since the last one came by stays for now.
            false if std::mem::take(&mut known.used) => return Known::default(),
            false => Known { address, ..Known::default() },
        };
        std::mem::replace(known, new)
    });
    // It may be the last to hold a tree, which is dropped when nothing is borrowed any more.
    drop(before);
}

#[cfg(test)]
mod tests {
    use base::Rng;

    use super::*;

    #[test]
    fn what_is_remembered_is_written_as_it_is() {
        let part = |number: u64| {
            let text = "x".repeat(usize::try_from(number % 90).unwrap_or(0));
            crate::json!({"a": text, "b": [(number as i64), {"c": [1i64, 2i64, {"d": "eeeeeeeeeeeeeeeeeee"}]}], "f": 1.5})
        };
        let mut rng = Rng::new(9);
        let parts: Vec<Value> = (0..200).map(part).collect();
        let mut objects: Vec<Value> = (0..50).map(|_| Value::List(parts[..20].iter().cloned().collect())).collect();
        let mut copied = 0;
        for round in 0..4_000 {
            let object = &mut objects[round % 50];
            // Changed in place, or made of parts that others have, too.
            object.items_mut()[round % 20].set(&["b"], rng.below(1_000) as i64);
            if rng.chance(300) {
                let some = |rng: &mut Rng| parts[usize::try_from(rng.below(200)).unwrap_or(0)].clone();
                *object = (0..20).map(|_| some(&mut rng)).collect::<Vec<Value>>().into();
            }
            let plain = std::thread::scope(|scope| scope.spawn(|| object.to_json()).join().unwrap());
            assert_eq!(object.to_json(), plain);
            copied += KNOWN.with_borrow(|all| all.iter().filter(|known| !known.value.is_null()).count());
        }
        assert!(copied > 4_000, "much was remembered");
    }
}
