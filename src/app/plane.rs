//! The choice of the plane at the start.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tracing::{debug, info, warn};

use crate::planes::Planes;
use crate::planes::ebpf::EbpfPlane;
use crate::planes::packet::rate::{Mode, Thresholds};
use crate::planes::packet::{Modes, PacketPlane};
use crate::settings::{PlaneKind, Settings};
use crate::sys::limits;
use crate::sys::offload::pins::{PinError, PinFolder};
use crate::sys::offload::{
    InstanceTag, OffloadProgram, Persistence, ProgramOptions, remove_left, remove_left_filters,
};

/// The smallest limit of open files with which `auto` chooses the eBPF plane. The plane needs a
/// dozen of them, and one more for each ingress.
const MIN_OPEN_FILES: usize = 256;

/// The environment variable that fixes the capture mode to `latency` or `throughput`. With
/// `prefer-throughput`, the latency mode serves only to hand flows over. For measurements and tests.
const FIXED_CAPTURE: &str = "MCASTOR_TEST_CAPTURE";

fn capture_modes() -> Modes {
    let fixed = std::env::var(FIXED_CAPTURE).ok();
    let is_fixed = |mode: &Mode| fixed.as_deref() == Some(mode.label());
    if let Some(mode) = [Mode::Latency, Mode::Throughput].into_iter().find(is_fixed) {
        return Modes::Fixed(mode);
    }
    let mut thresholds = Thresholds::default();
    if fixed.as_deref() == Some("prefer-throughput") {
        (thresholds.up, thresholds.down) = (0, 0);
    }
    Modes::Adaptive(thresholds)
}

/// The plane for the settings and this machine.
pub(super) struct ChosenPlane {
    packet: PacketPlane,
    /// The programs of the eBPF plane, or why the packet plane serves all interfaces.
    program: Result<OffloadProgram, Refusal>,
    /// Where the programs outlive the process, or why they do not; `None`: by the settings.
    pins: Option<Result<PinFolder, PinError>>,
    instance: InstanceTag,
    orphan_after: Duration,
}

/// Why the eBPF plane is not used.
enum Refusal {
    /// The settings select the packet plane.
    Settings,
    /// It cannot be used, for this reason. The second text is the remedy.
    Unusable(PlaneKind, String, &'static str),
}

impl ChosenPlane {
    /// Chooses the plane by trying to load the programs of the eBPF plane. `socket` is the one on
    /// which this instance serves commands, and whether this process has it already; `former_mark` is
    /// the mark of the packets that the running process of this instance sends, if this one replaces
    /// it.
    pub(super) fn choose(
        settings: &Settings,
        (socket, is_bound): (&Path, bool),
        former_mark: Option<u32>,
    ) -> Self {
        let mark = former_mark.unwrap_or_else(instance_mark);
        let bpffs = settings.plane.bpffs.as_ref();
        // If another process of this instance lives, this one ends when it binds the socket.
        let is_alone = || is_bound || former_mark.is_some() || UnixStream::connect(socket).is_err();
        let pins = bpffs.filter(|_| is_alone());
        let pins = pins.map(|root| PinFolder::open(root, socket));
        let packet = PacketPlane {
            qdisc_bypass: settings.plane.qdisc_bypass,
            modes: capture_modes(),
            busy_poll: settings.plane.busy_poll,
            ..PacketPlane::new(mark)
        };
        let instance = InstanceTag::of(socket);
        let program = match settings.plane.kind {
            PlaneKind::Packet => Err(Refusal::Settings),
            kind => {
                let persistence = match &pins {
                    Some(Ok(folder)) => Persistence::Pinned(folder.clone()),
                    Some(Err(_)) => Persistence::Filters,
                    None => Persistence::Nothing,
                };
                load_program(&packet, kind, settings, (instance, persistence))
            }
        };
        Self {
            packet,
            program,
            pins,
            instance,
            orphan_after: settings.plane.orphan_after,
        }
    }

    /// Returns the mark of the packets that this process sends.
    pub(super) fn mark(&self) -> u32 {
        match &self.program {
            Ok(program) => program.mark(),
            Err(_) => self.packet.mark,
        }
    }

    /// Returns the name of the plane.
    pub(super) fn name(&self) -> &'static str {
        match self.program {
            Ok(_) => EbpfPlane::NAME,
            Err(_) => PacketPlane::NAME,
        }
    }

    /// Logs why it was chosen, unless the settings select it.
    pub(super) fn log_reason(&self) {
        match &self.program {
            Ok(program) => {
                info!(
                    "plane ebpf: the kernel forwards known flows; its tables take up to {} MiB \
                     (limits.flows)",
                    program.table_bytes().div_ceil(1 << 20)
                );
                self.log_persistence(program);
            }
            Err(Refusal::Unusable(PlaneKind::Ebpf, reason, remedy)) => warn!(
                "plane packet, although plane.kind = \"ebpf\": {reason}. Packet sockets forward \
                 the same packets. For the kernel to forward them, {remedy}"
            ),
            Err(Refusal::Unusable(_, reason, remedy)) => {
                info!("plane packet: {reason}. For the kernel to forward, {remedy}");
            }
            Err(Refusal::Settings) => {}
        }
    }

    /// Logs what happens if this process ends unexpectedly.
    fn log_persistence(&self, program: &OffloadProgram) {
        match &self.pins {
            Some(Ok(_)) => info!(
                "if mcastor ends unexpectedly, the kernel forwards on for {} (plane.orphan_after)",
                humantime::format_duration(self.orphan_after)
            ),
            Some(Err(e)) => info!(
                "if mcastor ends unexpectedly, the kernel forwards on for {} (plane.orphan_after), \
                 but the next mcastor cannot read its tables: what was forwarded meanwhile is not \
                 counted, and flows start anew, which can lose some packets. {e} (plane.bpffs): \
                 mount one there, docs/ebpf.md#without-the-process",
                humantime::format_duration(self.orphan_after)
            ),
            None => {}
        }
        if program.has_other_layout() {
            warn!(
                "another version of mcastor left tables in the kernel that this one cannot read: \
                 its flows start anew, which can lose some packets"
            );
        }
    }

    /// Starts the plane. Its thread inherits the capabilities of the calling one.
    pub(super) fn start(self) -> Planes {
        let packet = Box::new(self.packet);
        let Ok(program) = self.program else {
            // What an earlier process left would forward beside this one.
            if let Some(Ok(folder)) = self.pins
                && let Err(e) = remove_left(&folder)
            {
                warn!("{}: cannot remove it: {e}", folder.path().display());
            }
            if let Err(e) = remove_left_filters(Some(self.instance)) {
                debug!("cannot find the filters that an earlier process left: {e}");
            }
            return Planes::new(packet, Vec::new());
        };
        match EbpfPlane::start(self.packet, program) {
            Ok(ebpf) => Planes::new(Box::new(ebpf), Vec::new()),
            Err(e) => {
                warn!("plane packet: the thread of the eBPF plane cannot be started: {e}");
                Planes::new(packet, Vec::new())
            }
        }
    }
}

fn load_program(
    packet: &PacketPlane,
    kind: PlaneKind,
    settings: &Settings,
    (instance, persistence): (InstanceTag, Persistence),
) -> Result<OffloadProgram, Refusal> {
    if kind == PlaneKind::Auto {
        let open_files = limits::max_open_files();
        if open_files < MIN_OPEN_FILES {
            let reason = format!("the limit of open files is {open_files}, below {MIN_OPEN_FILES}");
            let remedy = "raise it (ulimit -n, LimitNOFILE=), or set plane.kind = \"ebpf\"";
            return Err(Refusal::Unusable(kind, reason, remedy));
        }
        // The kernel would send through the queueing discipline.
        if settings.plane.qdisc_bypass {
            let reason = "only packet sockets can do what plane.qdisc_bypass = true demands".into();
            let remedy = "remove that key, or set plane.kind = \"ebpf\"";
            return Err(Refusal::Unusable(kind, reason, remedy));
        }
    }
    let flows = u32::try_from(settings.limits.flows).unwrap_or(u32::MAX);
    let options = ProgramOptions {
        mark: packet.mark,
        magic: instance_mark(),
        unknown_packets: settings.plane.unknown_packets,
        sizes: EbpfPlane::table_sizes(flows),
        instance,
        persistence,
        orphan_after: settings.plane.orphan_after,
    };
    OffloadProgram::load(&options).map_err(|e| Refusal::Unusable(kind, e.to_string(), e.remedy()))
}

/// Returns a random number other than zero, the mark of the packets that this instance sends. Other
/// instances on this machine are unlikely to have the same.
fn instance_mark() -> u32 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    // RandomState has a random seed.
    (RandomState::new().build_hasher().finish() as u32).max(1)
}
