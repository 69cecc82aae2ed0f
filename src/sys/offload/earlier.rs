//! What an earlier process of this instance left in the kernel, which still forwards: its programs
//! and tables.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use tracing::debug;

use super::pins::{PinFolder, PinGeneration, PinnedProgram};
use super::tables::{InstanceTable, LAYOUT, TableMaps};
use super::{
    Epoch, FlowSlot, ForwardedByKernel, HandOverState, KernelFlowKey, KernelFlowRecord,
    KernelTables, TableSizes,
};
use crate::model::IfIndex;

/// A flow that an earlier process handed over to the kernel.
pub struct EarlierFlow {
    /// The flow.
    pub key: KernelFlowKey,
    tables: Arc<KernelTables>,
    slot: FlowSlot,
    /// What the kernel forwarded of it, as far as it is in the counters that the process stored.
    pub counted: ForwardedByKernel,
    /// What it forwarded since then.
    pub uncounted: ForwardedByKernel,
}

impl EarlierFlow {
    fn read(key: KernelFlowKey, tables: &Arc<KernelTables>, slot: FlowSlot) -> Option<Self> {
        let record = tables.flow(slot)?;
        let uncounted = uncounted(record, tables, slot);
        let forwarded = record.forwarded();
        (record.control().state == HandOverState::Offloaded).then(|| Self {
            key,
            tables: tables.clone(),
            slot,
            counted: forwarded.less(uncounted),
            uncounted,
        })
    }

    /// Returns what the kernel forwarded of it by the tables of the earlier process since this was
    /// read.
    pub fn forwarded_since(&self) -> ForwardedByKernel {
        let Some(record) = self.tables.flow(self.slot) else {
            return ForwardedByKernel::default();
        };
        uncounted(record, &self.tables, self.slot).less(self.uncounted)
    }
}

fn uncounted(
    record: &KernelFlowRecord,
    tables: &KernelTables,
    slot: FlowSlot,
) -> ForwardedByKernel {
    let of_epoch = |epoch| record.forwarded_in(epoch).less(tables.counted(slot, epoch));
    let (even, odd) = (of_epoch(Epoch::Even), of_epoch(Epoch::Odd));
    ForwardedByKernel {
        packets: even.packets + odd.packets,
        bytes: even.bytes + odd.bytes,
    }
}

/// What one earlier process left.
struct EarlierProcess {
    generation: PinGeneration,
    mark: u32,
    alive: Duration,
    /// `None`: they have another layout.
    tables: Option<EarlierTables>,
}

struct EarlierTables {
    tables: Arc<KernelTables>,
    /// By ingress.
    flows: BTreeMap<IfIndex, Vec<(KernelFlowKey, FlowSlot)>>,
}

/// What earlier processes left. A process that was killed while it took over leaves two generations.
#[derive(Default)]
pub(super) struct Earlier(Vec<EarlierProcess>);

impl Earlier {
    /// Opens what is pinned. Removes what cannot be used.
    pub(super) fn open(folder: &PinFolder) -> Self {
        let open = |generation: PinGeneration| match EarlierProcess::open(generation.clone()) {
            Ok(process) => Some(process),
            Err(reason) => {
                debug!("{reason}: what an earlier process left is removed");
                generation.remove();
                None
            }
        };
        Self(folder.generations().into_iter().filter_map(open).collect())
    }

    /// Returns the mark of the packets that they send.
    pub(super) fn mark(&self) -> Option<u32> {
        Some(self.0.last()?.mark).filter(|mark| *mark != 0)
    }

    /// Returns when the last of them was last alive, by the boot clock.
    pub(super) fn alive(&self) -> Option<Duration> {
        Some(self.0.last()?.alive)
    }

    /// Returns whether the tables of one of them have another layout, so that its flows cannot be
    /// read.
    pub(super) fn has_other_layout(&self) -> bool {
        self.0.iter().any(|process| process.tables.is_none())
    }

    /// Returns what keeps a program on an interface.
    pub(super) fn program(&self, index: IfIndex) -> Option<(&PinGeneration, PinnedProgram)> {
        let generations = self.0.iter().rev().map(|process| &process.generation);
        let mut found = generations.filter_map(|generation| {
            let mut programs = generation.programs().into_iter();
            let (_, kind) = programs.find(|(on, _)| *on == index)?;
            Some((generation, kind))
        });
        found.next()
    }

    /// Returns the tables of the last process that had a program on an interface.
    fn tables(&self, index: IfIndex) -> Option<&EarlierTables> {
        let (generation, _) = self.program(index)?;
        let process = self.0.iter().find(|p| p.generation == *generation)?;
        process.tables.as_ref()
    }

    /// Returns the flows that the kernel forwards from an interface.
    pub(super) fn flows(&self, index: IfIndex) -> Vec<EarlierFlow> {
        let Some(earlier) = self.tables(index) else {
            return Vec::new();
        };
        let flows = earlier.flows.get(&index).into_iter().flatten();
        let flow = |(key, slot): &_| EarlierFlow::read(*key, &earlier.tables, *slot);
        flows.filter_map(flow).collect()
    }

    /// Removes the programs from an interface.
    pub(super) fn remove_program(&self, index: IfIndex) {
        // At once: the kernel removes a program some time later.
        if let Some(earlier) = self.tables(index) {
            let flows = earlier.flows.get(&index).into_iter().flatten();
            let records = flows.filter_map(|(_, slot)| earlier.tables.flow(*slot));
            records.for_each(|record| record.withdraw());
        }
        while let Some((generation, kind)) = self.program(index) {
            generation.remove_program(index, kind);
            if self.program(index) == Some((generation, kind)) {
                return;
            }
        }
    }

    /// Removes everything.
    pub(super) fn remove(&mut self) {
        for process in &self.0 {
            let programs = process.generation.programs();
            programs
                .iter()
                .for_each(|(index, _)| self.remove_program(*index));
        }
        for process in self.0.drain(..) {
            process.generation.remove();
        }
    }
}

impl EarlierProcess {
    fn open(generation: PinGeneration) -> Result<Self, String> {
        let pinned = |name: &str| {
            let path = generation.table(name);
            MapData::from_pin(&path).map_err(|e| format!("{}: {e}", path.display()))
        };
        let failed = |e: std::io::Error| e.to_string();
        let instance = InstanceTable::new(pinned("instance")?.fd().as_fd()).map_err(failed)?;
        let (mark, layout) = (instance.mark(), instance.layout());
        let mut process = Self {
            mark,
            alive: Duration::ZERO,
            tables: None,
            generation: generation.clone(),
        };
        if layout != LAYOUT {
            return Ok(process);
        }
        process.alive = instance.alive();
        let (flows, counted) = (pinned("flows")?, pinned("counted")?);
        let (rewrites, actions) = (pinned("rewrites")?, pinned("actions")?);
        let entries = |map: &MapData| {
            map.info()
                .map(|i| i.max_entries())
                .map_err(|e| e.to_string())
        };
        let sizes = TableSizes {
            flows: entries(&flows)?,
            actions: entries(&actions)?,
        };
        let maps = TableMaps {
            flows: flows.fd().as_fd(),
            counted: counted.fd().as_fd(),
            rewrites: rewrites.fd().as_fd(),
            actions: actions.fd().as_fd(),
        };
        let tables = KernelTables::new(maps, sizes).map_err(failed)?;
        let index: Result<HashMap<_, KernelFlowKey, FlowSlot>, _> =
            Map::HashMap(pinned("flow_index")?).try_into();
        let index = index.map_err(|e| e.to_string())?;
        let mut flows = BTreeMap::<_, Vec<_>>::new();
        for (key, slot) in index.iter().flatten() {
            if let Some(ingress) = key.ingress() {
                flows.entry(ingress).or_default().push((key, slot));
            }
        }
        let tables = Arc::new(tables);
        process.tables = Some(EarlierTables { tables, flows });
        Ok(process)
    }
}
