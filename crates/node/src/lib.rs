//! The node agent: the pod machine, volumes, probes, the kubelet endpoints.
