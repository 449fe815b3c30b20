//! The table of commands and flags. Everything about them is read from here: parsing, help, completion, the
//! configuration file, the environment.

use super::value::Kind;

/// One command. Words are separated by a blank: `image load`.
pub struct CommandRow {
    pub path: &'static str,
    pub about: &'static str,
    /// What is given without a flag: name, kind, what it is.
    pub argument: Option<(&'static str, Kind, &'static str)>,
    /// What one wants, and how to say it.
    pub examples: &'static [(&'static str, &'static str)],
}

/// One flag. The same name may stand in several rows for different commands.
pub struct FlagRow {
    pub name: &'static str,
    pub commands: &'static [&'static str],
    pub kind: Kind,
    pub many: bool,
    /// What holds when nobody says anything; empty: nothing.
    pub default: &'static str,
    pub help: &'static str,
}

impl FlagRow {
    /// The variable of the environment that gives it.
    pub fn variable(&self) -> String {
        format!("GANTRY_{}", self.name.replace('-', "_").to_uppercase())
    }
}

pub const COMMANDS: &[CommandRow] = &[
    CommandRow {
        path: "up",
        about: "Run a whole cluster on this machine: a server, and nodes in namespaces of their own",
        argument: None,
        examples: &[
            ("a cluster of one node", "gantry up"),
            ("three nodes, and an application in them", "gantry up --nodes 3 --apply app.yaml"),
            ("a second cluster beside the first", "gantry up --data /var/lib/second --listen 127.0.0.1:7443"),
        ],
    },
    CommandRow {
        path: "down",
        about: "Take away what a cluster, or an agent, left on this machine; one that still runs is stopped",
        argument: None,
        examples: &[
            ("processes, mounts, links, cgroups; the data stays", "gantry down"),
            ("the data, too", "gantry down --data /var/lib/second --delete-data"),
            ("a machine that was a node", "gantry down --data /var/lib/gantry-agent"),
        ],
    },
    CommandRow {
        path: "server",
        about: "Run the control plane: API, controllers, scheduler, metrics",
        argument: None,
        examples: &[
            ("reachable from other machines", "gantry server --listen 192.0.2.10:6443"),
            ("the API alone", "gantry server --parts api"),
        ],
    },
    CommandRow {
        path: "agent",
        about: "Make this machine a node; it joins with the token that the server keeps in DIR/join-token",
        argument: None,
        examples: &[
            ("join", "gantry agent --server https://192.0.2.10:6443 --token-file join-token"),
            ("later starts need no token", "gantry agent --server https://192.0.2.10:6443"),
        ],
    },
    CommandRow {
        path: "image load",
        about: "Take the images out of an archive (docker save, OCI layout) into the nodes' stores",
        argument: Some(("FILE", Kind::File, "The archive")),
        examples: &[
            ("on every node of gantry up", "gantry image load app.tar"),
            ("on one node", "gantry image load app.tar --node node-2"),
        ],
    },
    CommandRow {
        path: "image pull",
        about: "Fetch an image from its registry into the nodes' stores",
        argument: Some(("REF", Kind::Text, "The image's name")),
        examples: &[("by its name", "gantry image pull registry.example/app:1")],
    },
    CommandRow {
        path: "image list",
        about: "Show the images in the nodes' stores",
        argument: None,
        examples: &[("of a machine that is an agent", "gantry image list --data /var/lib/gantry-agent")],
    },
    CommandRow {
        path: "image remove",
        about: "Remove an image from the nodes' stores, by name or by id",
        argument: Some(("REF", Kind::Text, "Its name or its id")),
        examples: &[("by its name", "gantry image remove registry.example/app:1")],
    },
    CommandRow {
        path: "store check",
        about: "Read every byte of a store that nobody runs, and tell what is wrong with it",
        argument: None,
        examples: &[("of the cluster in the usual place", "gantry store check")],
    },
    CommandRow {
        path: "store dump",
        about: "Write what a store holds as text, one key a line, for people and for `store restore`",
        argument: None,
        examples: &[
            ("into a file", "gantry store dump --output keys.jsonl"),
            ("what is intact of a damaged store", "gantry store dump --salvage --output keys.jsonl"),
            ("as it was", "gantry store dump --revision 1200"),
        ],
    },
    CommandRow {
        path: "store restore",
        about: "Make a store of a dump, where there is none yet",
        argument: Some(("FILE", Kind::File, "The dump")),
        examples: &[("in another place", "gantry store restore keys.jsonl --data /var/lib/second")],
    },
    CommandRow {
        path: "sim",
        about: "Run whole clusters in simulated time, with faults, and check that they keep their promises",
        argument: None,
        examples: &[
            ("a hundred worlds with every sort of fault", "gantry sim --worlds 100"),
            ("one of them again, step by step", "gantry sim --seed 17 --steps"),
            ("only crashes", "gantry sim --profile crashes --worlds 20"),
            ("the smallest world that breaks as seed 17 does", "gantry sim --seed 17 --minimise"),
        ],
    },
    CommandRow {
        path: "bench",
        about: "Measure this machine's cluster, beside peers where they are installed; `list` tells what there is",
        argument: Some(("NAME", Kind::Text, "The bench, or `list`")),
        examples: &[
            ("what there is", "gantry bench list"),
            ("the store beside etcd", "gantry bench store"),
            ("a small cluster's scheduler, for a program", "gantry bench schedule --nodes 500 --pods 3000 --json"),
            ("another option", "gantry bench api --set outstanding=64 --set seconds=10"),
        ],
    },
    CommandRow {
        path: "completion",
        about: "Print a script that completes gantry's words in a shell",
        argument: Some(("SHELL", Kind::Word(&["bash", "zsh", "fish"]), "bash, zsh or fish")),
        examples: &[("for this session", "source <(gantry completion bash)")],
    },
    CommandRow { path: "version", about: "Print the version", argument: None, examples: &[] },
];

const ALL: &[&str] = &[
    "up",
    "down",
    "server",
    "agent",
    "image load",
    "image pull",
    "image list",
    "image remove",
    "store check",
    "store dump",
    "store restore",
];
const CLUSTERS: &[&str] = &["up", "server"];
const NODES: &[&str] = &["up", "agent"];
const IMAGES: &[&str] = &["image load", "image pull", "image list", "image remove"];
const PULLS: &[&str] = &["up", "agent", "image pull"];

pub const FLAGS: &[FlagRow] = &[
    FlagRow {
        name: "data",
        commands: &[
            "up",
            "down",
            "server",
            "image load",
            "image pull",
            "image list",
            "image remove",
            "store check",
            "store dump",
            "store restore",
        ],
        kind: Kind::Dir,
        many: false,
        default: "/var/lib/gantry",
        help: "Folder for everything the cluster keeps",
    },
    FlagRow {
        name: "data",
        commands: &["agent"],
        kind: Kind::Dir,
        many: false,
        default: "/var/lib/gantry-agent",
        help: "Folder for certificates, images, volumes and logs",
    },
    FlagRow {
        name: "listen",
        commands: CLUSTERS,
        kind: Kind::Socket,
        many: false,
        default: "127.0.0.1:6443",
        help: "Address and port of the API",
    },
    FlagRow {
        name: "also",
        commands: &["server"],
        kind: Kind::Socket,
        many: true,
        default: "",
        help: "One more address to listen on; the first one is what pods and agents are told",
    },
    FlagRow {
        name: "nodes",
        commands: &["up"],
        kind: Kind::Number(1, 100),
        many: false,
        default: "1",
        help: "How many nodes",
    },
    FlagRow {
        name: "apply",
        commands: &["up"],
        kind: Kind::File,
        many: true,
        default: "",
        help: "A manifest (YAML or JSON) that is applied when the cluster is ready",
    },
    FlagRow {
        name: "parts",
        commands: &["server"],
        kind: Kind::Words(&["api", "controllers", "scheduler", "metrics"]),
        many: false,
        default: "api,controllers,scheduler,metrics",
        help: "What to run, separated by commas",
    },
    FlagRow {
        name: "pod-cidr",
        commands: CLUSTERS,
        kind: Kind::Cidr(16, 24),
        many: false,
        default: "10.244.0.0/16",
        help: "Range of the addresses of pods; each node gets a /24 of it",
    },
    FlagRow {
        name: "service-cidr",
        commands: CLUSTERS,
        kind: Kind::Cidr(12, 28),
        many: false,
        default: "10.96.0.0/16",
        help: "Range of the addresses of services",
    },
    FlagRow {
        name: "node-cidr",
        commands: &["up"],
        kind: Kind::Cidr(16, 28),
        many: false,
        default: "",
        help: "Range of the addresses of the nodes; one that is free on this machine when not given",
    },
    FlagRow {
        name: "cluster-domain",
        commands: CLUSTERS,
        kind: Kind::Text,
        many: false,
        default: "cluster.local",
        help: "The end of all names of services",
    },
    FlagRow {
        name: "certificate-lifetime",
        commands: CLUSTERS,
        kind: Kind::Duration,
        many: false,
        default: "365d",
        help: "How long certificates hold; they are renewed in time",
    },
    FlagRow {
        name: "token-config-map",
        commands: CLUSTERS,
        kind: Kind::Text,
        many: true,
        default: "",
        help: "A ConfigMap, NAME or NAME:KEY, that every namespace gets with the cluster's root under KEY, and pods find \
               beside their token; KEY is what follows the name's first dash when not given",
    },
    FlagRow {
        name: "server",
        commands: &["agent"],
        kind: Kind::Url,
        many: false,
        default: "",
        help: "The API server, https://HOST:PORT",
    },
    FlagRow {
        name: "token-file",
        commands: &["agent"],
        kind: Kind::File,
        many: false,
        default: "",
        help: "File with the token to join with; needed at the first start only",
    },
    FlagRow {
        name: "node",
        commands: &["agent"],
        kind: Kind::Text,
        many: false,
        default: "",
        help: "The node's name; that of the machine when not given",
    },
    FlagRow {
        name: "node",
        commands: IMAGES,
        kind: Kind::Text,
        many: false,
        default: "",
        help: "Only this node of gantry up; all of them when not given",
    },
    FlagRow {
        name: "address",
        commands: &["agent"],
        kind: Kind::Address,
        many: false,
        default: "",
        help: "The node's own address; the one from which it reaches the server when not given",
    },
    FlagRow {
        name: "label",
        commands: NODES,
        kind: Kind::Pair,
        many: true,
        default: "",
        help: "A label of the node, KEY=VALUE",
    },
    FlagRow {
        name: "kubelet-port",
        commands: NODES,
        kind: Kind::Number(1, 65_535),
        many: false,
        default: "10250",
        help: "The port of a node's own endpoints",
    },
    FlagRow {
        name: "state",
        commands: &["agent"],
        kind: Kind::Dir,
        many: false,
        default: "/run/gantry-agent",
        help: "Folder for what need not outlive the machine: namespaces, sockets",
    },
    FlagRow {
        name: "cgroup",
        commands: &["agent"],
        kind: Kind::Text,
        many: false,
        default: "/gantry",
        help: "The node's place among the control groups, below each hierarchy's root",
    },
    FlagRow {
        name: "images",
        commands: &["agent"],
        kind: Kind::Dir,
        many: false,
        default: "",
        help: "Image archives (*.tar) in this folder are loaded at start",
    },
    FlagRow {
        name: "pod-network",
        commands: &["agent"],
        kind: Kind::Word(&["wrapped", "direct"]),
        many: false,
        default: "wrapped",
        help: "How packets get to pods of other nodes: wrapped (VXLAN), or direct where all nodes share one link",
    },
    FlagRow {
        name: "shared-machine",
        commands: &["agent"],
        kind: Kind::Switch,
        many: false,
        default: "",
        help: "Other nodes run on this machine: the node's numbers are those of its own control group",
    },
    FlagRow {
        name: "insecure-registry",
        commands: PULLS,
        kind: Kind::HostPort,
        many: true,
        default: "",
        help: "A registry, HOST:PORT, that is spoken to without TLS",
    },
    FlagRow {
        name: "registry-ca",
        commands: PULLS,
        kind: Kind::File,
        many: false,
        default: "",
        help: "Certificates (PEM) of authorities that registries may be signed by",
    },
    FlagRow {
        name: "registry-user",
        commands: &["image pull"],
        kind: Kind::Text,
        many: false,
        default: "",
        help: "User name at the registry",
    },
    FlagRow {
        name: "registry-password-file",
        commands: &["image pull"],
        kind: Kind::File,
        many: false,
        default: "",
        help: "File with the password at the registry",
    },
    FlagRow {
        name: "seed",
        commands: &["sim"],
        kind: Kind::Number(0, u64::MAX),
        many: false,
        default: "1",
        help: "The first world; the same seed gives the same world, to the bit",
    },
    FlagRow {
        name: "worlds",
        commands: &["sim"],
        kind: Kind::Number(1, 1_000_000),
        many: false,
        default: "1",
        help: "How many worlds, with the seeds that follow",
    },
    FlagRow {
        name: "profile",
        commands: &["sim"],
        kind: Kind::Word(&[
            "calm", "lossy", "crashes", "disks", "nodes", "links", "pauses", "clocks", "all", "tight", "busy",
            "hundred", "large", "long",
        ]),
        many: false,
        default: "all",
        help: "What goes wrong in them",
    },
    FlagRow {
        name: "only",
        commands: &["sim"],
        kind: Kind::Text,
        many: false,
        default: "",
        help: "What of a world happens: 'steps=0,4 faults=2 work=12000 without=lost,late'",
    },
    FlagRow {
        name: "minimise",
        commands: &["sim"],
        kind: Kind::Switch,
        many: false,
        default: "",
        help: "Look for the smallest schedule with which the first broken world still breaks",
    },
    FlagRow {
        name: "steps",
        commands: &["sim"],
        kind: Kind::Switch,
        many: false,
        default: "",
        help: "Print every step",
    },
    FlagRow {
        name: "json",
        commands: &["sim"],
        kind: Kind::Switch,
        many: false,
        default: "",
        help: "Print one line of JSON per world",
    },
    FlagRow {
        name: "nodes",
        commands: &["bench"],
        kind: Kind::Number(0, 100_000),
        many: false,
        default: "",
        help: "How many nodes, where the bench has them",
    },
    FlagRow {
        name: "pods",
        commands: &["bench"],
        kind: Kind::Number(0, 10_000_000),
        many: false,
        default: "",
        help: "How many pods, where the bench has them",
    },
    FlagRow {
        name: "shape",
        commands: &["bench"],
        kind: Kind::Text,
        many: false,
        default: "",
        help: "The shape of the pods, where the bench has several",
    },
    FlagRow {
        name: "set",
        commands: &["bench"],
        kind: Kind::Pair,
        many: true,
        default: "",
        help: "Any option of the bench, NAME=VALUE; `gantry bench list` tells them",
    },
    FlagRow {
        name: "alone",
        commands: &["bench"],
        kind: Kind::Switch,
        many: false,
        default: "",
        help: "Run no peer beside",
    },
    FlagRow {
        name: "small",
        commands: &["bench"],
        kind: Kind::Switch,
        many: false,
        default: "",
        help: "The tiny form, to see that it works",
    },
    FlagRow {
        name: "json",
        commands: &["bench"],
        kind: Kind::Switch,
        many: false,
        default: "",
        help: "Print the figures as one JSON object, and the progress on standard error",
    },
    FlagRow {
        name: "delete-data",
        commands: &["down"],
        kind: Kind::Switch,
        many: false,
        default: "",
        help: "Remove the folder, too",
    },
    FlagRow {
        name: "salvage",
        commands: &["store dump"],
        kind: Kind::Switch,
        many: false,
        default: "",
        help: "Take what is intact of a damaged store",
    },
    FlagRow {
        name: "revision",
        commands: &["store dump"],
        kind: Kind::Number(1, u64::MAX),
        many: false,
        default: "",
        help: "The state at this revision; the newest when not given",
    },
    FlagRow {
        name: "output",
        commands: &["store dump"],
        kind: Kind::File,
        many: false,
        default: "",
        help: "File to write into (mode 0600); standard output when not given",
    },
    FlagRow {
        name: "config",
        commands: ALL,
        kind: Kind::File,
        many: false,
        default: "",
        help: "A YAML file with flags by their names: `listen: 127.0.0.1:7443`",
    },
    FlagRow {
        name: "log",
        commands: ALL,
        kind: Kind::Text,
        many: false,
        default: "info",
        help: "What is logged: error, warn, info, debug, or by part, as in `info,server=debug`",
    },
];

/// The flags of one command.
pub fn flags_of(command: &str) -> impl Iterator<Item = &'static FlagRow> {
    FLAGS.iter().filter(move |flag| flag.commands.contains(&command))
}

pub fn command(path: &str) -> Option<&'static CommandRow> {
    COMMANDS.iter().find(|row| row.path == path)
}
