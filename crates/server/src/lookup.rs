//! What a kind may look up while it prepares a change.

use cache::View;
use meta::{Lookup, Object, Resource, Str};

use crate::Options;

pub struct ViewLookup<'a> {
    pub view: &'a View,
    pub options: &'a Options,
}

impl Lookup for ViewLookup<'_> {
    fn one(&self, resource: Resource, namespace: &str, name: &str) -> Option<Object> {
        self.view.one(resource, namespace, name).cloned()
    }

    fn list(&self, resource: Resource, namespace: &str) -> Vec<Object> {
        self.view.list(resource, namespace).cloned().collect()
    }

    fn setting(&self, name: &str) -> Option<Str> {
        match name {
            "service-cidr" => Some(self.options.service_cidr.as_str().into()),
            "cluster-domain" => Some(self.options.cluster_domain.as_str().into()),
            "node-port-range" => {
                let (first, last) = self.options.node_ports;
                Some(format!("{first}-{last}").into())
            }
            _ => None,
        }
    }
}
