"""The peer of bench_step: a LangGraph graph of one node that loops, checkpointed to PostgreSQL after every step.

Not a dependency of ours; ``make bench-peers`` installs it.
"""

import asyncio
import json
import sys
import time
from typing import TypedDict
from uuid import uuid4

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, StateGraph
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool


class State(TypedDict):
    done: int
    result: int


async def main(dsn: str, at_once: int, runs: int, steps: int) -> None:
    async def step(state: State) -> State:
        return {"done": state["done"] + 1, "result": 4}

    options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with AsyncConnectionPool(dsn, min_size=at_once, max_size=at_once, kwargs=options, open=False) as pool:
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        graph = StateGraph(State)
        graph.add_node("step", step)
        graph.add_edge(START, "step")
        graph.add_conditional_edges("step", lambda state: "step" if state["done"] < steps else END)
        compiled = graph.compile(checkpointer=saver)
        left = iter(range(runs))

        async def caller() -> None:
            for _ in left:
                config = {"configurable": {"thread_id": str(uuid4())}, "recursion_limit": steps + 5}
                await compiled.ainvoke({"done": 0, "result": 0}, config, durability="sync")

        start = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(at_once)))
        took = time.perf_counter() - start
    print(json.dumps({"steps_per_second": runs * steps / took}))


asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
