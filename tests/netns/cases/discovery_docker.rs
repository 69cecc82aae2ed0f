//! The recipes of docs/discovery.md on a real Docker Engine, with the settings of the document. mcastor
//! is a container of the engine. In recipes between two networks without containers, the network
//! `home` takes the place of one. The bodies are those of the same recipes in plain namespaces.

use super::cases;
use super::discovery_recipes::{
    control_devices, find_camera, find_tuner, open_knx_tunnel, print_page, read_matter_device,
    read_over_vpn, receive_samples, use_players,
};
use crate::lab::Lab;
use crate::lab::recipe_site::{Bridge, RecipeSite, recipe};

cases!("discovery_docker":
    #[Docker] #[Iptables] #[PyPi("aiohomekitctl")] home_assistant_in_a_container_controls_devices,
    #[Docker] #[Iptables] #[PyPi("wsdiscover")] recorder_in_a_container_finds_a_camera,
    #[Docker] #[Iptables] #[Program("knxd", "knxd")] container_opens_a_tunnel_of_knx,
    #[Docker] #[Iptables] #[Program("avahi-daemon", "avahi-daemon")]
    #[Python("zeroconf", "python3-zeroconf")]
    container_finds_a_matter_device_over_ipv6,
    #[Docker] #[Iptables] #[Program("ddsperf", "cyclonedds-tools")]
    container_in_a_routed_network_receives_dds_samples,
    #[Docker] #[Iptables] #[PyPi("atvremote")] container_uses_players_in_a_vlan,
    #[Docker] #[Iptables] #[Program("avahi-daemon", "avahi-daemon")]
    #[Program("avahi-browse", "avahi-utils")] #[Program("dbus-daemon", "dbus-daemon")]
    #[Program("ippeveprinter", "cups-ipp-utils")] container_finds_printer_and_prints,
    #[Docker] #[Iptables] #[Program("avahi-daemon", "avahi-daemon")]
    #[Python("zeroconf", "python3-zeroconf")] container_and_second_site_find_each_other_over_a_vpn,
    #[Docker] #[Iptables] container_finds_a_tuner_by_broadcast,
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

/// A controller, such as Home Assistant, takes the place of the phones on `eth0`.
fn container_uses_players_in_a_vlan(lab: &Lab) {
    let site = RecipeSite::docker_beside(lab, "vlan20", Bridge::Masqueraded);
    let settings = recipe("Chromecast and AirPlay in a VLAN");
    let settings = settings.replace("\"eth0\"", "\"network:home\"");
    site.start_with(lab, &settings, ["vlan20", "network:home"]);
    let (device, user) = (&site.device, &site.container);
    use_players(lab, (device, "10.0.0.10"), (user, "172.20.0.2"));
}

/// Containers are the guests.
fn container_finds_printer_and_prints(lab: &Lab) {
    let site = RecipeSite::docker_beside(lab, "lan", Bridge::Masqueraded);
    let settings = recipe("Printers for a guest network");
    let settings = settings.replace("\"guest\"", "\"network:home\"");
    site.start_with(lab, &settings, ["lan", "network:home"]);
    print_page(lab, (&site.device, "10.0.0.10"), &site.container);
}

fn container_and_second_site_find_each_other_over_a_vpn(lab: &Lab) {
    read_over_vpn(lab, &RecipeSite::docker(lab, Bridge::Masqueraded));
}

fn container_finds_a_tuner_by_broadcast(lab: &Lab) {
    find_tuner(lab, &RecipeSite::docker(lab, Bridge::Masqueraded));
}
