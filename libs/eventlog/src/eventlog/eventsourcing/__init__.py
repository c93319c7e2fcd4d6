"""The library `eventsourcing` on an event log: its Application, snapshots and projections, unchanged.

PERSISTENCE_MODULE=eventlog.eventsourcing selects `EventLogFactory`. `register_type` gives event classes stable names,
`acting` names who acts, `import_events` brings an existing history over, `refuse_unsafe` checks an environment. See
docs/eventsourcing.md.
"""

from eventlog.eventsourcing.context import acting
from eventlog.eventsourcing.factory import EventLogFactory
from eventlog.eventsourcing.importing import Imported, import_events
from eventlog.eventsourcing.names import register_type
from eventlog.eventsourcing.safety import refuse_unsafe
from eventlog.eventsourcing.settings import environment

__all__ = ["EventLogFactory", "Imported", "acting", "environment", "import_events", "refuse_unsafe", "register_type"]
