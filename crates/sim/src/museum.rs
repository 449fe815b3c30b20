//! The museum: worlds that once broke, each with the story of its defect. They are run in every test and stay whole.

use crate::fault;
use crate::schedule::Schedule;
use crate::world::Settings;

/// A world that broke: seed, profile, what of it is needed, and what was learned.
pub struct Exhibit {
    pub seed: u64,
    pub profile: &'static str,
    /// What `gantry sim --minimise` left of it, as `--only` takes it; `None` for all of the world.
    pub schedule: Option<&'static str>,
    pub story: &'static str,
}

impl Exhibit {
    /// The world that is shown.
    ///
    /// # Errors
    /// What in its row says nothing.
    pub fn settings(&self) -> Result<Settings, String> {
        let profile = fault::profile(self.profile).ok_or_else(|| format!("{:?} is no sort of world", self.profile))?;
        let schedule = self.schedule.map_or_else(|| Ok(Schedule::default()), Schedule::parse)?;
        Ok(Settings { profile, schedule, ..Settings::quiet(self.seed) })
    }
}

pub const EXHIBITS: &[Exhibit] = &[
    Exhibit {
        seed: 119,
        profile: "lossy",
        schedule: None,
        story: "A deployment went below its minimum: it counted pods as serving that its set was to lose anyway, since \
                the set's status said so late. A set serves with no more pods than it is to have.",
    },
    Exhibit {
        seed: 1145,
        profile: "all",
        schedule: None,
        story: "A disk that failed while the server started was taken for damage. What fails for the medium is tried \
                again by whoever supervises the server.",
    },
    Exhibit {
        seed: 34,
        profile: "all",
        schedule: None,
        story: "A create that failed with the disk happened all the same, later, after another pod had been made up for \
                it. The decision that follows a failure takes the same names as the one that failed.",
    },
    Exhibit {
        seed: 3187,
        profile: "upgrade",
        schedule: None,
        story: "Nobody led though a server could have, it was said, when all stood still. A server had been replaced while \
                it stood still, and the end of that pause was noted down for its successor, which stood still by then \
                itself. What is known of a process ends with it.",
    },
    Exhibit {
        seed: 10336,
        profile: "upgrade",
        schedule: Some(
            "steps=6 faults=0,1,2,3,6,17,22 work=30000 \
             without=answer-lost,crash,doubled,hang,late,latency,lost,pull,stall,stubborn,undead,watch-cut",
        ),
        story: "An agent ran a pod for ever that was being deleted: it stood still between asking a server and hearing the \
                answer, the server was replaced meanwhile, and the agent went on with the cache of the dead one. The link \
                noted who had died before only from the answer on. Worlds alone were wrong: a connection of real ones \
                breaks.",
    },
    Exhibit {
        seed: 9,
        profile: "crashes",
        schedule: None,
        story: "A pod got the address of one that had gone 122 ms before, while other machines still led a service to it: an \
                agent that began anew gave addresses from the first on, which were those that had come free last. Real \
                agents did so at each of their starts, and worlds hid it, since there the table outlived the agent. Which \
                address was given last is kept on the disk.",
    },
    Exhibit {
        seed: 40028,
        profile: "lossy",
        schedule: None,
        story: "A revision of a set was collected though its owner lived, it was said: the set had waited for its dependents to \
                go, and was asked to be deleted in another way in the moment in which the collector had decided. The judge was \
                wrong: whoever decided while an owner waited could not know.",
    },
    Exhibit {
        seed: 810_000,
        profile: "picky-all",
        schedule: None,
        story: "A rollout of a daemon set went on while a node was lost, and took a second of four pods away where one may be \
                missing: only nodes that would take a new pod were counted. A lost node counts with the pod that it has, \
                and has no other one made for it.",
    },
    Exhibit {
        seed: 1,
        profile: "spread",
        schedule: Some(
            "steps=1,3 faults= work=5000 \
             without=answer-lost,crash,doubled,hang,late,latency,lost,pull,stall,stubborn,undead,watch-cut",
        ),
        story: "A pod came into a zone that then had two more of its sort than the emptiest, where it bore one: pods on their \
                way out still counted, as if they were to stay. They keep others off their node, and are no part of a spread \
                any more.",
    },
    Exhibit {
        seed: 2,
        profile: "ranked",
        schedule: Some(
            "steps=13,15,17,19,20,22,23,24,25,26,27,31,32,35,36,37,38,40 faults= \
             without=answer-lost,crash,doubled,hang,late,latency,lost,pull,stall,stubborn,undead,watch-cut",
        ),
        story: "A daemon waited for ever beside room that was enough for it: the room was promised to a pod for which it was not, \
                since others had come that mattered more. Who is refused and can push nobody out is promised nothing any more, \
                and its status says so.",
    },
    Exhibit {
        seed: 1027,
        profile: "picky-all",
        schedule: None,
        story: "Two pods that did not want each other came to one node: the binding of the first had failed with the disk, its \
                room had been given to the second, and then it happened all the same. What fails within the server is unknown \
                until the same is answered, and its room stays taken.",
    },
    Exhibit {
        seed: 23,
        profile: "lost",
        schedule: None,
        story: "A stateful set that was to have no pods any more kept three that had ended with their nodes: it waited with the \
                last for the first to be well, which was to go, too. What ended holds nobody up.",
    },
    Exhibit {
        seed: 3,
        profile: "removals",
        schedule: None,
        story: "A pod got an address that another one still had: nodes that were deleted and came again were given whatever \
                network was free, which was that of another one that had not ended its pods. A node says which network it had \
                and gets that again.",
    },
    Exhibit {
        seed: 5,
        profile: "removals-all",
        schedule: None,
        story: "A node came anew while it still ran a pod that others might start: its agent had asked whether its object was \
                there, the answer got lost, and it took that for a yes. Whoever hears nothing does not know.",
    },
    Exhibit {
        seed: 70_057,
        profile: "ranked-all",
        schedule: None,
        story: "A set decided on a view that lacks a pod of its own, it was said: the pod had been refused, and was made after all \
                when the message came a second time. Nobody can know that, so the judge was wrong; but with fewer pods refused \
                the next decision would have made up for it by another name. Whoever asks again passes over the names that \
                are there.",
    },
];
