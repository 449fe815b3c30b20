//! Runs worlds: `one PROFILE SEED [COUNT] [print]`.
fn main() {
    let words: Vec<String> = std::env::args().collect();
    if words[1] == "defects" {
        for (mutation, checker, profile) in sim::mutation::DEFECTS {
            let profile = sim::fault::profile(profile).expect("a profile");
            let found = (0..30).find_map(|seed| {
                let settings = sim::world::Settings {
                    seed,
                    profile,
                    mutation: Some(*mutation),
                    only: Some(checker),
                    print: false,
                };
                let report = sim::world::run(settings);
                let finding = report.finding?;
                println!("   {mutation:?} seed {seed} {finding}");
                finding.starts_with(checker).then_some(seed)
            });
            println!("{mutation:?} {checker} {found:?}");
        }
        return;
    }
    let profile = sim::fault::profile(&words[1]).expect("a profile");
    let seed: u64 = words[2].parse().expect("a seed");
    let count: u64 = words.get(3).map_or(1, |word| word.parse().expect("a count"));
    let print = words.get(4).is_some();
    let began = std::time::Instant::now();
    for seed in seed..seed + count {
        let settings = sim::world::Settings { seed, profile, mutation: None, only: None, print };
        let at = std::time::Instant::now();
        let report = sim::world::run(settings);
        println!(
            "seed {seed} {:016x} events {} writes {} virtual {} s real {} ms {}",
            report.digest,
            report.events,
            report.writes,
            report.virtual_ms / 1000,
            at.elapsed().as_millis(),
            report.finding.as_deref().unwrap_or("ok")
        );
        if report.finding.is_some() && count == 1 {
            for line in report.last_steps {
                println!("  {line}");
            }
        }
    }
    println!("{} ms", began.elapsed().as_millis());
}
