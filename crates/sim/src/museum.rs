//! The museum: worlds that once broke, each with the story of its defect. They are run in every test and stay whole.

/// A world that broke: seed, profile, and what was learned.
pub struct Exhibit {
    pub seed: u64,
    pub profile: &'static str,
    pub story: &'static str,
}

pub const EXHIBITS: &[Exhibit] = &[Exhibit {
    seed: 9,
    profile: "busy",
    story: "A job's pod that its deleted job had set free kept the job's finalizer and never went; and its agent \
                let it go without a pause, thousands of times a second. Pods of no job are released, and a farewell \
                waits five seconds before it is said again.",
}];
