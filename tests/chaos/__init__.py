"""Break the event log in every way we know, and check that it kept its word.

Read in this order:

| file | what it is |
|---|---|
| `history.py` | what clients were told, and what is found at the end |
| `checker.py` | the pure judgement: history against log, tails, stream and views gives violations |
| `workload.py` | what writers ask for: a seeded mix of requests |
| `target.py` | the log under test as the harness sees it; `target_eventlog.py`, `target_library.py` and `target_dcb.py` are such |
| `worker.py` | the processes that are killed: writer, tail, follower, projector, relay, archiver |
| `crew.py` | starts and kills them, keeps the journal of what they were told |
| `view.py` | the view that they fold |
| `servers.py` | PostgreSQL and NATS that can be killed, a disk that can be filled |
| `nemesis.py` | the faults, one function each |
| `rounds.py` | one round: start, inflict fault after fault, each once recovery from the last is proven, stop, judge |
| `plants.py` | defects planted into the log, each of which the checker must find |
| `report.py`, `__main__.py` | the table, build/chaos.json, the command line |

A round ends with everything stopped and read; nothing is judged while it moves. `make chaos` runs many rounds,
`test_chaos.py` one small one with every fault in it, `test_plants.py` one for each planted defect.
"""
