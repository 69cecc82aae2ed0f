//! Recipes of docs/discovery.md for containers, with the very settings of the document, on a real
//! Docker Engine. The bodies are those of the same recipes in plain namespaces.

use super::cases;
use super::discovery_recipes::{
    control_devices, find_camera, open_knx_tunnel, read_matter_device, receive_samples,
};
use crate::lab::Lab;
use crate::lab::recipe_site::{Bridge, RecipeSite};

cases!("discovery_docker":
    #[Docker] #[Iptables] #[PyPi("aiohomekitctl")] home_assistant_in_a_container_controls_devices,
    #[Docker] #[Iptables] #[PyPi("wsdiscover")] recorder_in_a_container_finds_a_camera,
    #[Docker] #[Iptables] #[Program("knxd", "knxd")] container_opens_a_tunnel_of_knx,
    #[Docker] #[Iptables] #[Program("avahi-daemon", "avahi-daemon")]
    #[Python("zeroconf", "python3-zeroconf")]
    container_finds_a_matter_device_over_ipv6,
    #[Docker] #[Iptables] #[Program("ddsperf", "cyclonedds-tools")]
    container_in_a_routed_network_receives_dds_samples,
);

fn home_assistant_in_a_container_controls_devices(lab: &Lab) {
    control_devices(lab, &RecipeSite::docker(lab, Bridge::Masqueraded));
}

fn recorder_in_a_container_finds_a_camera(lab: &Lab) {
    find_camera(lab, &RecipeSite::docker(lab, Bridge::Masqueraded));
}

fn container_opens_a_tunnel_of_knx(lab: &Lab) {
    open_knx_tunnel(lab, &RecipeSite::docker(lab, Bridge::Masqueraded));
}

fn container_finds_a_matter_device_over_ipv6(lab: &Lab) {
    read_matter_device(lab, &RecipeSite::docker(lab, Bridge::Masqueraded));
}

fn container_in_a_routed_network_receives_dds_samples(lab: &Lab) {
    receive_samples(lab, &RecipeSite::docker(lab, Bridge::Routed));
}
