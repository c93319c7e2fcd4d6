"""Small agents for tests, all on the simulator."""

CALCULATOR = """
apiVersion: synod/v1
kind: Agent
metadata: {name: calculator}
spec:
  behaviour: react
  model: {name: simulator/sim-1}
  tools: [calc]
  capabilities: [arithmetic]
  instructions: |
    1. call calc with {"expression": "6 * 7"}
    2. call calc with {"expression": "{{1.value}} + 0.5"}
    answer: {"result": {{2.value}}}
"""

HELPER = """
apiVersion: synod/v1
kind: Agent
metadata: {name: helper}
spec:
  behaviour: chat
  model: {name: simulator/sim-1}
  instructions: Help people.
"""

# Slow enough to be killed in the middle: the tools really run.
WORKER = """
apiVersion: synod/v1
kind: Agent
metadata: {name: worker}
spec:
  behaviour: react
  model: {name: simulator/sim-1}
  tools: [calc, python_exec]
  instructions: |
    1. call calc with {"expression": "2 ** 10"}
    2. call python_exec with {"code": "import time\\ntime.sleep(0.4)\\nresult = sum(range(1000))"} and call calc with {"expression": "3 * 3"}
    3. call calc with {"expression": "{{1.value}} + {{2#1.value}} + {{2#2.value}}"}
    4. call python_exec with {"code": "import time\\ntime.sleep(0.4)\\nresult = 'done'"}
    answer: {"total": {{3.value}}, "state": "{{4.value}}"}
---
apiVersion: synod/v1
kind: Team
metadata: {name: crew}
spec:
  pattern: parallel
  steps:
    - {id: left, agent: worker, task: "left {{input}}"}
    - {id: right, agent: worker, task: "right {{input}}"}
  aggregator: {id: sum, agent: worker, task: "{{steps.left.output}} and {{steps.right.output}}"}
"""
