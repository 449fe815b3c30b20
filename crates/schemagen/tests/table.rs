//! The committed table is the one that the inputs make.

#[test]
fn the_table_is_current() {
    let made = schemagen::generate().expect("the sources of both crates are there");
    let path = schemagen::table_path();
    let committed = std::fs::read_to_string(&path).expect("the table is committed");
    let differs = made.lines().zip(committed.lines()).find(|(made, committed)| made != committed);
    assert!(made == committed, "run `cargo run -p schemagen`; first difference: {differs:?}");
}
