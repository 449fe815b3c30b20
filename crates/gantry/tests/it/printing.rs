//! What commands do that print for somebody who has gone, as in `gantry … | head`.

use std::process::{Command, Stdio};

#[test]
fn commands_end_without_a_word_when_nobody_reads() {
    for words in ["version", "completion bash", "bench names", "sim --seed 1 --steps"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_gantry"));
        let ended = command.args(words.split(' ')).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let told = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!((ended.status.code(), told.as_str()), (Some(141), ""), "{words}");
    }
}
