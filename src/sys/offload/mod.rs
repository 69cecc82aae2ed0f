//! The programs of the eBPF plane in the kernel: loading, attaching, and their table of flows.
//!
//! `forward.c` says what they do. Its object file is part of this program, because a build must not
//! need clang.

mod clsact;
mod earlier;
pub mod pins;
mod tables;

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues};
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcError, TcHandle,
    qdisc_add_clsact,
};
use aya::programs::{ProgramError, SchedClassifier, SocketFilter, TcAttachType};
use aya::{Ebpf, EbpfError, EbpfLoader};
use tracing::debug;

use super::{capabilities, limits};
use crate::model::IfIndex;
use crate::sys::boot_clock::since_boot;
use clsact::FilterHandle;
use earlier::Earlier;
use pins::{PinFolder, PinGeneration, PinnedProgram};
use tables::{InstanceTable, TableMaps};

pub use clsact::{InstanceTag, remove_left_filters};
pub use earlier::EarlierFlow;
pub use tables::{
    ActionSlot, Epoch, FlowControl, FlowSlot, ForwardedByKernel, HandOverState, KernelAction,
    KernelEgress, KernelFlowKey, KernelFlowRecord, KernelRewrite, KernelTables, LAYOUT,
    MAX_EGRESSES, MAX_PORTS, PortSlot, TableSizes,
};

/// The programs, compiled.
const OBJECT: &[u8] = aya::include_bytes_aligned!("forward.o");

/// Why the programs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OffloadError {
    /// The process lacks these capabilities.
    #[error("BPF programs need {}, which this process lacks", enumeration(.0))]
    MissingCapabilities(Vec<&'static str>),
    /// The kernel denies it although the process has the capabilities.
    #[error(
        "the kernel denies BPF programs in spite of CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN: {0}"
    )]
    Denied(io::Error),
    /// The tables are larger than the limit of locked memory.
    #[error("the tables take {needed} bytes of locked memory, and RLIMIT_MEMLOCK is {limit}")]
    LockedMemory {
        /// Bytes that the tables take.
        needed: u64,
        /// The limit.
        limit: u64,
    },
    /// The kernel has no BPF, or lacks something that the programs need.
    #[error("the kernel lacks what the programs need: {0}")]
    Unsupported(String),
    /// Another error.
    #[error(transparent)]
    Other(#[from] io::Error),
}

/// Returns a list as in a sentence: "a, b and c".
fn enumeration(names: &[&str]) -> String {
    match names {
        [others @ .., last] if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        _ => names.concat(),
    }
}

impl OffloadError {
    /// Returns what the user can do.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::MissingCapabilities(_) => {
                "give mcastor these capabilities, as in docs/install.md#forwarding-in-the-kernel"
            }
            Self::Denied(_) => {
                "permit the system call bpf in the seccomp profile or in SystemCallFilter=, outside \
                 of user namespaces; see docs/install.md#forwarding-in-the-kernel"
            }
            Self::LockedMemory { .. } => {
                "raise the limit (ulimit -l, LimitMEMLOCK=), or lower limits.flows"
            }
            Self::Unsupported(_) | Self::Other(_) => {
                "use a newer kernel: docs/ebpf.md has the tested ones"
            }
        }
    }

    /// Returns why the kernel does not permit something.
    fn denied(error: io::Error) -> Self {
        match capabilities::missing_for_bpf() {
            missing if missing.is_empty() => Self::Denied(error),
            missing => Self::MissingCapabilities(missing),
        }
    }

    fn from_io(error: io::Error, context: impl FnOnce(&io::Error) -> String) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::denied(error),
            _ => Self::Unsupported(context(&error)),
        }
    }

    fn from_program(error: ProgramError) -> Self {
        match error {
            ProgramError::LoadError {
                io_error,
                verifier_log,
            } => {
                let log = verifier_log.to_string();
                let reason = last_reason(&log).to_owned();
                // Without CAP_PERFMON the verifier prohibits usual arithmetic, with EACCES.
                let is_denied = reason.contains("prohibited for !root") || log.trim().is_empty();
                match io_error.raw_os_error() {
                    Some(libc::EPERM) => Self::denied(io_error),
                    Some(libc::EACCES) if is_denied => Self::denied(io_error),
                    _ => Self::Unsupported(format!("{io_error}; its verifier says: {reason}")),
                }
            }
            ProgramError::SyscallError(e) => {
                let call = e.call;
                Self::from_io(e.io_error, |e| format!("{call}: {e}"))
            }
            ProgramError::TcError(TcError::NetlinkError(e)) => match e.raw_os_error() {
                Some(code) => Self::from_io(io::Error::from_raw_os_error(code), |io| {
                    format!("cannot add a filter to the clsact queueing discipline: {io}; {e}")
                }),
                None => Self::Unsupported(e.to_string()),
            },
            other => Self::Unsupported(other.to_string()),
        }
    }

    fn from_map(error: MapError) -> Self {
        match error {
            MapError::CreateError { name, io_error } => {
                Self::from_io(io_error, |e| format!("cannot create the table {name}: {e}"))
            }
            MapError::SyscallError(e) => {
                let call = e.call;
                Self::from_io(e.io_error, |e| format!("{call}: {e}"))
            }
            other => Self::Unsupported(other.to_string()),
        }
    }
}

impl From<EbpfError> for OffloadError {
    fn from(error: EbpfError) -> Self {
        match error {
            EbpfError::MapError(e) => Self::from_map(e),
            EbpfError::ProgramError(e) => Self::from_program(e),
            other => Self::Unsupported(other.to_string()),
        }
    }
}

/// The beginnings of the lines with which a verifier log ends after the reason.
const STATISTICS: [&str; 3] = ["processed ", "stack depth ", "verification time "];

/// Returns the line of a verifier log that says why: the last one that is no statistic.
fn last_reason(log: &str) -> &str {
    let is_statistic = |line: &str| STATISTICS.iter().any(|start| line.starts_with(start));
    let lines = log.lines().map(str::trim);
    let mut reasons = lines.filter(|l| !l.is_empty() && !is_statistic(l));
    reasons.next_back().unwrap_or("nothing")
}

/// The program that decides, as filter of a capture socket.
#[derive(Debug, Clone)]
pub struct CaptureProgram(Arc<OwnedFd>);

impl CaptureProgram {
    pub(super) fn descriptor(&self) -> &OwnedFd {
        &self.0
    }
}

/// The program that forwards, on one interface. Dropping it removes the program, unless it is
/// pinned; [`OffloadProgram::detach`] removes it in both cases.
pub struct Attachment {
    program: AttachedProgram,
    interface: String,
    index: IfIndex,
}

/// What keeps a program on an interface.
enum AttachedProgram {
    Link(SchedClassifierLink),
    Pinned(PinnedLink),
    Filter(SchedClassifierLink, u32),
}

impl Attachment {
    /// Returns the name that the interface had then.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Leaves the program on the interface, if it can stay there without this process.
    pub fn leave(self) {
        match self.program {
            AttachedProgram::Link(_) | AttachedProgram::Pinned(_) => {}
            // Dropping it would remove the filter.
            AttachedProgram::Filter(link, _) => std::mem::forget(link),
        }
    }
}

/// What of the programs outlives the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Persistence {
    /// Nothing.
    Nothing,
    /// The programs, as filters of clsact. The next process cannot read their tables.
    Filters,
    /// Programs and tables, which are pinned in this folder.
    Pinned(PinFolder),
}

impl Persistence {
    fn folder(&self) -> Option<&PinFolder> {
        match self {
            Self::Pinned(folder) => Some(folder),
            Self::Nothing | Self::Filters => None,
        }
    }
}

/// How the programs are loaded.
#[derive(Debug, Clone)]
pub struct ProgramOptions {
    /// The mark by which they recognise packets that this instance sent, unless an earlier process
    /// of this instance left another one.
    pub mark: u32,
    /// A number that only the programs of this process know.
    pub magic: u32,
    /// Packets a second of unknown flows that they pass to the capture, for each interface and
    /// core; 0: all.
    pub unknown_packets: u64,
    /// The sizes of their tables.
    pub sizes: TableSizes,
    /// The instance that this process is of.
    pub instance: InstanceTag,
    /// What outlives the process.
    pub persistence: Persistence,
    /// How long the programs forward without a process, if they outlive it.
    pub orphan_after: Duration,
}

/// The state of an interface in the programs: `struct port`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct PortRecord {
    pending: u64,
    lost: u64,
}

// SAFETY: integers without padding, so every byte is initialised and every value is valid.
unsafe impl aya::Pod for PortRecord {}

/// Packets of unknown flows on an interface: `struct unknown`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct UnknownRecord {
    window: u64,
    packets: u64,
    dropped: u64,
}

// SAFETY: integers without padding, so every byte is initialised and every value is valid.
unsafe impl aya::Pod for UnknownRecord {}

/// The window of time in which packets of unknown flows are counted.
const UNKNOWN_WINDOW: Duration = Duration::from_nanos(1 << 27);

/// The loaded programs. Dropping this removes them and their tables from the kernel, as soon as no
/// capture socket uses them.
pub struct OffloadProgram {
    ebpf: Ebpf,
    capture: CaptureProgram,
    flow_index: HashMap<MapData, KernelFlowKey, FlowSlot>,
    ports: PerCpuArray<MapData, PortRecord>,
    unknown: PerCpuHashMap<MapData, u32, UnknownRecord>,
    tables: Arc<KernelTables>,
    /// Cores that the kernel may use, which need not be running.
    cores: usize,
    instance: InstanceTable,
    mark: u32,
    /// The instance that this process is of.
    instance_tag: InstanceTag,
    persistence: Persistence,
    /// Where the programs and tables of this process are pinned.
    pins: Option<PinGeneration>,
    /// What earlier processes left and this one has not taken over yet.
    earlier: Earlier,
    /// The handle of the filters of this process, where tcx is missing.
    handle: Option<FilterHandle>,
    /// Interfaces to which this process added a clsact queueing discipline.
    added_clsact: Vec<IfIndex>,
}

impl OffloadProgram {
    /// Loads the programs, and opens what an earlier process left. That continues to forward until
    /// [`OffloadProgram::attach`] replaces it.
    ///
    /// # Errors
    /// The kernel denies it, or lacks something.
    pub fn load(options: &ProgramOptions) -> Result<Self, OffloadError> {
        let needed = options.sizes.bytes();
        limits::permit_locked_tables(needed)
            .map_err(|limit| OffloadError::LockedMemory { needed, limit })?;
        let loaded = Self::load_programs(options);
        loaded.map_err(|error| match error {
            // A kernel that permits some programs to everybody refuses these with any error.
            OffloadError::Unsupported(reason) if !capabilities::missing_for_bpf().is_empty() => {
                OffloadError::denied(io::Error::other(reason))
            }
            other => other,
        })
    }

    fn load_programs(options: &ProgramOptions) -> Result<Self, OffloadError> {
        let folder = options.persistence.folder();
        let earlier = folder.map(Earlier::open);
        let earlier = earlier.unwrap_or_default();
        // The captures see the packets that the earlier programs still send.
        let mark = earlier.mark().unwrap_or(options.mark);
        let sizes = options.sizes;
        let unknown_limit = match options.unknown_packets {
            0 => u64::MAX,
            limit => limit.saturating_mul(UNKNOWN_WINDOW.as_millis() as u64) / 1000,
        };
        let mut ebpf = EbpfLoader::new()
            .override_global("own_mark", &mark, true)
            .override_global("own_magic", &options.magic, true)
            .override_global("unknown_limit", &unknown_limit, true)
            .map_max_entries("flow_index", sizes.flows)
            .map_max_entries("flows", sizes.flows)
            .map_max_entries("counted", sizes.flows)
            .map_max_entries("rewrites", sizes.rewrites())
            .map_max_entries("actions", sizes.actions)
            .load(OBJECT)?;
        let program: &mut SocketFilter = program(&mut ebpf, "capture")?;
        program.load().map_err(OffloadError::from_program)?;
        let descriptor = program.fd().map_err(OffloadError::from_program)?;
        let capture = CaptureProgram(Arc::new(descriptor.as_fd().try_clone_to_owned()?));
        let classifier: &mut SchedClassifier = self::program(&mut ebpf, clsact::PROGRAM)?;
        classifier.load().map_err(OffloadError::from_program)?;
        let pins = folder.map(|folder| pin_tables(&ebpf, folder));
        let pins = pins.transpose()?;
        let flow_index = HashMap::try_from(map(&mut ebpf, "flow_index")?);
        let ports = PerCpuArray::try_from(map(&mut ebpf, "ports")?);
        let unknown = PerCpuHashMap::try_from(map(&mut ebpf, "unknown_packets")?);
        let array = |map| match map {
            Map::Array(data) => Ok(data),
            _ => Err(OffloadError::Unsupported("a table has another type".into())),
        };
        let instance = InstanceTable::new(array(map(&mut ebpf, "instance")?)?.fd().as_fd())?;
        // Filters stay in any case if this process is killed.
        let orphan_after = match options.persistence {
            Persistence::Nothing => Duration::ZERO,
            Persistence::Filters | Persistence::Pinned(_) => options.orphan_after,
        };
        instance.write(mark, orphan_after);
        instance.set_alive(since_boot());
        let flows = array(map(&mut ebpf, "flows")?)?;
        let rewrites = array(map(&mut ebpf, "rewrites")?)?;
        let actions = array(map(&mut ebpf, "actions")?)?;
        let counted = array(map(&mut ebpf, "counted")?)?;
        let maps = TableMaps {
            flows: flows.fd().as_fd(),
            counted: counted.fd().as_fd(),
            rewrites: rewrites.fd().as_fd(),
            actions: actions.fd().as_fd(),
        };
        let tables = KernelTables::new(maps, sizes)?;
        Ok(Self {
            ebpf,
            capture,
            flow_index: flow_index.map_err(OffloadError::from_map)?,
            ports: ports.map_err(OffloadError::from_map)?,
            unknown: unknown.map_err(OffloadError::from_map)?,
            tables: Arc::new(tables),
            // Now, because confined threads may not open the file.
            cores: aya::util::nr_cpus().map_err(|(_, e)| e)?,
            instance,
            mark,
            instance_tag: options.instance,
            persistence: options.persistence.clone(),
            pins,
            earlier,
            handle: None,
            added_clsact: Vec::new(),
        })
    }

    /// Loads the programs with small tables, and removes them.
    ///
    /// # Errors
    /// As [`OffloadProgram::load`].
    pub fn probe() -> Result<(), OffloadError> {
        let (flows, actions) = (1, 1);
        Self::load(&ProgramOptions {
            mark: 1,
            magic: 1,
            unknown_packets: 0,
            sizes: TableSizes { flows, actions },
            instance: InstanceTag::default(),
            persistence: Persistence::Nothing,
            orphan_after: Duration::ZERO,
        })
        .map(drop)
    }

    /// Returns the mark of the packets that this instance sends.
    pub fn mark(&self) -> u32 {
        self.mark
    }

    /// Returns what outlives this process.
    pub fn persistence(&self) -> &Persistence {
        &self.persistence
    }

    /// Says that this process lives, so that its programs continue to forward if it dies.
    pub fn set_alive(&self) {
        self.instance.set_alive(since_boot());
    }

    /// Returns how long ago the last process of this instance was alive, if it left something that
    /// this process has not taken over yet.
    pub fn gone_for(&self) -> Option<Duration> {
        Some(since_boot().saturating_sub(self.earlier.alive()?))
    }

    /// Returns whether an earlier process left tables of another layout. Its flows are forwarded
    /// until [`OffloadProgram::attach`], and start anew then.
    pub fn has_other_layout(&self) -> bool {
        self.earlier.has_other_layout()
    }

    /// Returns the flows that an earlier process handed over on an interface, and that the kernel
    /// forwards until [`OffloadProgram::attach`].
    pub fn earlier_flows(&self, index: IfIndex) -> Vec<EarlierFlow> {
        self.earlier.flows(index)
    }

    /// Removes what an earlier process left on an interface.
    pub fn remove_earlier_from(&self, index: IfIndex) {
        self.earlier.remove_program(index);
        for handle in clsact::left_filters(index, Some(self.instance_tag)).unwrap_or_default() {
            // Fails if the interface is gone.
            let _ = clsact::remove_filter(index, handle);
        }
    }

    /// Removes what earlier processes left, except what this one has taken over.
    pub fn remove_earlier(&mut self) {
        self.earlier.remove();
        if let Err(e) = clsact::remove_left_filters(Some(self.instance_tag)) {
            debug!("cannot find the filters that earlier processes left: {e}");
        }
    }

    /// Returns the memory of its full tables in the kernel, in bytes.
    pub fn table_bytes(&self) -> u64 {
        let flows = self.tables.flow_capacity() as u32;
        let actions = self.tables.action_capacity() as u32;
        TableSizes { flows, actions }.bytes()
    }

    /// Returns the filter for capture sockets.
    pub fn capture(&self) -> &CaptureProgram {
        &self.capture
    }

    /// Returns the tables of flows and actions.
    pub fn tables(&self) -> &Arc<KernelTables> {
        &self.tables
    }

    /// Attaches the program that forwards to the ingress of an interface, before the programs of
    /// others: by tcx (Linux 6.6), otherwise by a clsact queueing discipline. If an earlier process
    /// left its program there, this one takes its place: each packet meets one of the two.
    ///
    /// # Errors
    /// The interface does not exist, or the kernel refuses.
    pub fn attach(&mut self, index: IfIndex) -> Result<Attachment, OffloadError> {
        let name = name_of(index)?;
        let (program, former_pin) = match self.replace_earlier(&name, index) {
            Some((program, pin)) => (program, Some(pin)),
            None => (self.attach_new(&name, index)?, None),
        };
        let program = self.pin(index, program)?;
        // Later than the new one: the program stays if this process is killed in between.
        if let Some(path) = former_pin {
            let _ = std::fs::remove_file(path);
        }
        Ok(Attachment {
            program,
            interface: name,
            index,
        })
    }

    fn attach_new(&mut self, name: &str, index: IfIndex) -> Result<AttachedProgram, OffloadError> {
        // A link that is not pinned ends with this process.
        if self.persistence == Persistence::Filters {
            return self.attach_by_clsact(name, index);
        }
        let program: &mut SchedClassifier = program(&mut self.ebpf, clsact::PROGRAM)?;
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let attached = program.attach_with_options(name, TcAttachType::Ingress, order);
        match attached {
            Err(ProgramError::SyscallError(e))
                if e.io_error.raw_os_error() == Some(libc::EINVAL) =>
            {
                self.attach_by_clsact(name, index)
            }
            other => {
                let id = other.map_err(OffloadError::from_program)?;
                let link = program.take_link(id).map_err(OffloadError::from_program)?;
                Ok(AttachedProgram::Link(link))
            }
        }
    }

    /// Puts the program in the place of the one that an earlier process left on an interface.
    /// Returns what keeps it there now, and where that was pinned; `None` if there is none. One that
    /// cannot be replaced is removed.
    fn replace_earlier(
        &mut self,
        name: &str,
        index: IfIndex,
    ) -> Option<(AttachedProgram, PathBuf)> {
        let (generation, kind) = self.earlier.program(index)?;
        let path = generation.program(index, kind);
        let link = match kind {
            PinnedProgram::Link => {
                let link = PinnedLink::from_pin(&path).map(FdLink::from);
                link.ok()
                    .and_then(|link| SchedClassifierLink::try_from(link).ok())
            }
            PinnedProgram::Filter(handle) => self.take_filter(name, handle),
        };
        let Some(link) = link.and_then(|link| self.replace_program(link)) else {
            self.earlier.remove_program(index);
            return None;
        };
        let program = match kind {
            PinnedProgram::Link => AttachedProgram::Link(link),
            PinnedProgram::Filter(handle) => {
                self.added_clsact.push(index);
                AttachedProgram::Filter(link, handle)
            }
        };
        Some((program, path))
    }

    /// Returns the filter with this handle, whose process has died, if this process can use the
    /// handle.
    fn take_filter(&mut self, name: &str, handle: u32) -> Option<SchedClassifierLink> {
        if self.handle.is_none() {
            self.handle = FilterHandle::take_over(handle);
        }
        self.handle.as_ref().filter(|own| own.get() == handle)?;
        let (ingress, handle) = (TcAttachType::Ingress, TcHandle::from(handle));
        SchedClassifierLink::attached(name, ingress, clsact::PRIORITY, handle, None).ok()
    }

    /// Puts the program in the place of another one: each packet meets one of the two.
    fn replace_program(&mut self, link: SchedClassifierLink) -> Option<SchedClassifierLink> {
        let program: &mut SchedClassifier = program(&mut self.ebpf, clsact::PROGRAM).ok()?;
        let id = program.attach_to_link(link).ok()?;
        program.take_link(id).ok()
    }

    /// Pins what keeps the program on an interface. If that fails, removes the program.
    fn pin(
        &mut self,
        index: IfIndex,
        program: AttachedProgram,
    ) -> Result<AttachedProgram, OffloadError> {
        let Some(pins) = &self.pins else {
            return Ok(program);
        };
        let failed = |path: &Path, e: &dyn std::error::Error| {
            io::Error::other(format!("cannot pin {}: {e}", path.display()))
        };
        match program {
            AttachedProgram::Link(link) => {
                let path = pins.program(index, PinnedProgram::Link);
                // That of an interface with this index that is gone.
                let _ = std::fs::remove_file(&path);
                let link = FdLink::try_from(link).map_err(|e| failed(&path, &e))?;
                let pinned = link.pin(&path).map_err(|e| failed(&path, &e))?;
                Ok(AttachedProgram::Pinned(pinned))
            }
            AttachedProgram::Filter(link, handle) => {
                let path = pins.program(index, PinnedProgram::Filter(handle));
                let _ = std::fs::remove_file(&path);
                let program: &mut SchedClassifier = self::program(&mut self.ebpf, clsact::PROGRAM)?;
                program.pin(&path).map_err(|e| failed(&path, &e))?;
                Ok(AttachedProgram::Filter(link, handle))
            }
            pinned => Ok(pinned),
        }
    }

    /// Attaches the program as a filter of a clsact queueing discipline, which is added if there is
    /// none.
    fn attach_by_clsact(
        &mut self,
        name: &str,
        index: IfIndex,
    ) -> Result<AttachedProgram, OffloadError> {
        let added = qdisc_add_clsact(name).is_ok();
        let left = clsact::left_filters(index, Some(self.instance_tag))?;
        // A process that died may have added the discipline.
        if (added || !left.is_empty()) && !self.added_clsact.contains(&index) {
            self.added_clsact.push(index);
        }
        let mut replaced = None;
        for handle in left {
            let link = self.take_filter(name, handle);
            match link.and_then(|link| self.replace_program(link)) {
                Some(link) => replaced = Some(AttachedProgram::Filter(link, handle)),
                None => clsact::remove_filter(index, handle)?,
            }
        }
        if let Some(replaced) = replaced {
            return Ok(replaced);
        }
        let handle = match &self.handle {
            Some(handle) => handle.get(),
            None => self
                .handle
                .insert(FilterHandle::claim(self.instance_tag)?)
                .get(),
        };
        let program: &mut SchedClassifier = program(&mut self.ebpf, clsact::PROGRAM)?;
        let options = TcAttachOptions::Netlink(NlOptions {
            priority: clsact::PRIORITY,
            handle: TcHandle::from(handle),
            ..NlOptions::default()
        });
        let attached = program.attach_with_options(name, TcAttachType::Ingress, options);
        let link = attached.and_then(|id: SchedClassifierLinkId| program.take_link(id));
        let link = link.map_err(OffloadError::from_program)?;
        Ok(AttachedProgram::Filter(link, handle))
    }

    /// Removes the program from an interface.
    pub fn detach(&mut self, attachment: Attachment) {
        match attachment.program {
            AttachedProgram::Link(link) => drop(link),
            // Fails if somebody else removed it.
            AttachedProgram::Pinned(link) => drop(link.unpin()),
            AttachedProgram::Filter(link, handle) => {
                drop(link);
                if let Some(pins) = &self.pins {
                    let kind = PinnedProgram::Filter(handle);
                    let _ = std::fs::remove_file(pins.program(attachment.index, kind));
                }
            }
        }
        if let Some(at) = (self.added_clsact.iter()).position(|i| *i == attachment.index) {
            self.added_clsact.swap_remove(at);
            // Fails if the interface is gone.
            let _ = clsact::remove_if_unused(attachment.index);
        }
    }

    /// Limits the packets of unknown flows that arrive on an interface.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn limit_unknown(&mut self, index: IfIndex) -> Result<(), OffloadError> {
        let values = PerCpuValues::try_from(vec![UnknownRecord::default(); self.cores])?;
        let inserted = self.unknown.insert(index.get(), values, 0);
        inserted.map_err(OffloadError::from_map)
    }

    /// Ends [`OffloadProgram::limit_unknown`].
    pub fn stop_limiting_unknown(&mut self, index: IfIndex) {
        // Fails if it is not there.
        let _ = self.unknown.remove(&index.get());
    }

    /// Returns the packets of unknown flows that were not passed to the capture since
    /// [`OffloadProgram::limit_unknown`].
    pub fn dropped_unknown(&self, index: IfIndex) -> u64 {
        let records = self.unknown.get(&index.get(), 0);
        records.map_or(0, |records| records.iter().map(|r| r.dropped).sum())
    }

    /// Lets flows use the position of an interface.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn reset_port(&mut self, port: PortSlot) -> Result<(), OffloadError> {
        let values = PerCpuValues::try_from(vec![PortRecord::default(); self.cores])?;
        let set = self.ports.set(port.into(), values, 0);
        set.map_err(OffloadError::from_map)
    }

    /// Returns the packets that were lost on an interface because the program that forwards was
    /// not attached any more. Its packets are left to this process until
    /// [`OffloadProgram::reset_port`].
    pub fn lost(&self, port: PortSlot) -> u64 {
        let records = self.ports.get(&port.into(), 0);
        records.map_or(0, |records| records.iter().map(|r| r.lost).sum())
    }

    /// Lets the programs use a record for a flow.
    ///
    /// # Errors
    /// The table is full, or there is no memory.
    pub fn insert(&mut self, key: &KernelFlowKey, slot: FlowSlot) -> Result<(), OffloadError> {
        let inserted = self.flow_index.insert(key, slot, 0);
        inserted.map_err(OffloadError::from_map)
    }

    /// Removes a flow. Its record may be used again after [`wait_for_programs`].
    pub fn remove(&mut self, key: &KernelFlowKey) {
        // Fails if it is not there.
        let _ = self.flow_index.remove(key);
    }
}

impl Drop for OffloadProgram {
    fn drop(&mut self) {
        // It was loaded, and nothing was done with it.
        if let Some(pins) = self.pins.take() {
            pins.remove();
        }
        if let Some(folder) = self.persistence.folder() {
            folder.remove_if_empty();
        }
    }
}

impl OffloadProgram {
    /// Leaves what is pinned, so that the next process finds it.
    pub fn leave(&mut self) {
        self.set_alive();
        (self.pins, self.persistence) = (None, Persistence::Nothing);
    }

    /// Removes what is pinned. The programs end with this process, or when they are detached.
    pub fn unpin(&mut self) {
        self.remove_earlier();
        self.pins = None;
        let persistence = std::mem::replace(&mut self.persistence, Persistence::Nothing);
        if let Some(folder) = persistence.folder()
            && let Err(e) = folder.remove()
        {
            debug!("cannot remove {}: {e}", folder.path().display());
        }
    }
}

/// Removes what the processes of an instance left. They forward nothing any more when this returns.
///
/// # Errors
/// The folder cannot be removed.
pub fn remove_left(folder: &PinFolder) -> io::Result<()> {
    Earlier::open(folder).remove();
    folder.remove()
}

/// Returns when the process of an instance was last alive, by the boot clock; `None` if nothing
/// readable is left of it.
pub fn last_alive(folder: &PinFolder) -> Option<Duration> {
    Earlier::open(folder).alive()
}

/// Pins the tables in a new generation of a folder.
fn pin_tables(ebpf: &Ebpf, folder: &PinFolder) -> Result<PinGeneration, OffloadError> {
    let pins = folder.add_generation().map_err(io::Error::other)?;
    for name in [
        "instance",
        "flow_index",
        "flows",
        "counted",
        "rewrites",
        "actions",
    ] {
        let table = ebpf.map(name).ok_or_else(|| missing_table(name))?;
        let pinned = table.pin(pins.table(name));
        pinned.map_err(|e| io::Error::other(format!("cannot pin the table {name}: {e}")))?;
    }
    Ok(pins)
}

fn missing_table(name: &str) -> OffloadError {
    OffloadError::Unsupported(format!("there is no table {name}"))
}

fn program<'e, P>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut P, OffloadError>
where
    &'e mut P: TryFrom<&'e mut aya::programs::Program, Error = ProgramError>,
{
    let missing = || OffloadError::Unsupported(format!("there is no program {name}"));
    let program = ebpf.program_mut(name).ok_or_else(missing)?;
    program.try_into().map_err(OffloadError::from_program)
}

fn map(ebpf: &mut Ebpf, name: &str) -> Result<Map, OffloadError> {
    ebpf.take_map(name).ok_or_else(|| missing_table(name))
}

/// Returns the name of an interface of the network namespace of this thread.
fn name_of(index: IfIndex) -> io::Result<String> {
    let mut name = [0 as libc::c_char; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the length that the call requires.
    let found = unsafe { libc::if_indextoname(index.get(), name.as_mut_ptr()) };
    if found.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has written a name with its NUL.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    let name = name.to_str().map_err(io::Error::other)?;
    Ok(name.into())
}

/// Waits until each run of the programs has ended that began before this call. A run that begins
/// later sees all earlier changes of the tables. Takes 5 to 50 ms.
pub fn wait_for_programs() {
    /// Waits for an RCU grace period of the kernel (membarrier(2)).
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes no pointers.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if done < 0 {
        // Kernels with cores without a timer tick refuse (EINVAL). A run takes microseconds.
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_enumerated() {
        for (names, expected) in [
            (&["CAP_BPF"][..], "need CAP_BPF, which"),
            (
                &["CAP_BPF", "CAP_PERFMON"],
                "need CAP_BPF and CAP_PERFMON, which",
            ),
            (&["a", "b", "c"], "need a, b and c, which"),
        ] {
            let text = OffloadError::MissingCapabilities(names.to_vec()).to_string();
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn full_tables_have_a_size() {
        let (flows, actions) = (65_536, 4096);
        let mib = TableSizes { flows, actions }.bytes() >> 20;
        assert_eq!(mib, 26);
    }

    #[test]
    fn last_line_of_the_verifier_is_the_reason() {
        let log = "0: (bf) r6 = r1\nR5 pointer arithmetic on pkt prohibited for !root\n\
                   verification time 108 usec\nstack depth 24\n\
                   processed 56 insns (limit 1000000)\n\n";
        assert_eq!(
            last_reason(log),
            "R5 pointer arithmetic on pkt prohibited for !root"
        );
        assert_eq!(last_reason(""), "nothing");
    }
}
