import { NpucError } from '../errors.ts';
import type { Graph, Module, Node, Value } from './graph.ts';
import { requiredInputs } from './required-inputs.ts';
import { printType } from './text-print.ts';
import { checkEncodings, checkPorts, checkQuantized, checkStates, checkTieGroups } from './verify-quantization.ts';

/**
 * How far a module has come: `imported` (anything a model file can say), `frozen` (every dimension a number),
 * `quantized` (as frozen, and what must share or carry an encoding does).
 */
export type Stage = 'imported' | 'frozen' | 'quantized';

/** One broken rule: which one, at which value, node or graph, and how. */
export interface Finding {
  readonly invariant: string;
  readonly where: string;
  readonly message: string;
}

/** Reports a broken rule at a place. */
export type Report = (where: string, message: string) => void;

/** A rule of the IR, named so that a finding says which one was broken. */
export interface Invariant {
  readonly name: string;
  readonly about: string;
  /** The first stage at which it must hold. */
  readonly since: Stage;
  readonly check: (module: Module, report: Report) => void;
}

/** Every rule, in the order in which they are checked. */
export const INVARIANTS: readonly Invariant[] = [
  {
    name: 'names',
    about: 'graphs have different names; a value is found in its graph by its name',
    since: 'imported',
    check: checkNames,
  },
  {
    name: 'producers',
    about: 'a value is an input, a constant or the output of exactly one node, which it points to',
    since: 'imported',
    check: checkProducers,
  },
  {
    name: 'uses',
    about: 'the reads listed at a value are the input slots that hold it, of nodes that are in a graph',
    since: 'imported',
    check: checkUses,
  },
  {
    name: 'order',
    about: 'a node reads only what an earlier line of its graph, or of a graph around it, defines under that name',
    since: 'imported',
    check: checkOrder,
  },
  {
    name: 'inputs',
    about: 'inputs that an operator cannot do without are there; every domain has an opset',
    since: 'imported',
    check: checkInputs,
  },
  {
    name: 'types',
    about: 'a constant has the type of its data; dimensions are not negative',
    since: 'imported',
    check: checkTypes,
  },
  {
    name: 'encodings',
    about: 'an encoding fits the shape it is on: scales, blocks, zero points; a payload fits the encoding',
    since: 'imported',
    check: (module, report) => forEachGraph(module, (graph) => checkEncodings(graph, report)),
  },
  {
    name: 'ports',
    about: 'a quantized port is an input or output and has an encoding',
    since: 'imported',
    check: (module, report) => forEachGraph(module, (graph) => checkPorts(graph, report)),
  },
  {
    name: 'states',
    about: 'a state of a graph is declared, comes in as an input and leaves as an output of its type',
    since: 'imported',
    check: checkStates,
  },
  {
    name: 'tie-groups',
    about: 'the values of a tie group exist and share one encoding, or have none',
    since: 'imported',
    check: checkTieGroups,
  },
  {
    name: 'frozen',
    about: 'every value has a type, and every dimension is a number',
    since: 'frozen',
    check: checkFrozen,
  },
  {
    name: 'quantized',
    about: 'tied values have their encoding, and an appended state has one encoding on both sides or on none',
    since: 'quantized',
    check: checkQuantized,
  },
];

const STAGES: readonly Stage[] = ['imported', 'frozen', 'quantized'];

/** Every broken rule of a module, those of earlier stages included. */
export function findProblems(module: Module, stage: Stage = 'imported'): Finding[] {
  const findings: Finding[] = [];
  for (const { name, since, check } of INVARIANTS) {
    if (STAGES.indexOf(since) > STAGES.indexOf(stage)) continue;
    check(module, (where, message) => findings.push({ invariant: name, where, message }));
  }
  return findings;
}

/** @throws IR201 with every broken rule of a module */
export function verify(module: Module, stage: Stage = 'imported'): void {
  const findings = findProblems(module, stage);
  if (findings.length === 0) return;
  const shown = findings.slice(0, 20).map(({ invariant, where, message }) => `  ${invariant}: ${where}: ${message}`);
  if (findings.length > shown.length) shown.push(`  and ${findings.length - shown.length} more`);
  throw new NpucError('IR201', {
    message: `the module breaks ${findings.length} ${findings.length === 1 ? 'rule' : 'rules'} of stage ${stage}:\n${shown.join('\n')}`,
    where: findings[0]!.where,
  });
}

/** Visits every graph, subgraphs after the graph around them, bodies of local functions last. */
export function forEachGraph(module: Module, visit: (graph: Graph) => void): void {
  const walk = (graph: Graph): void => {
    visit(graph);
    for (const node of graph.nodes) for (const inner of node.subgraphs) walk(inner);
  };
  module.graphs.forEach(walk);
  for (const local of module.functions) walk(local.body);
}

function describe(node: Node): string {
  return node.name === '' ? `${node.op} (unnamed)` : node.name;
}

function checkNames(module: Module, report: Report): void {
  const seen = new Set<string>();
  for (const graph of module.graphs) {
    if (seen.has(graph.name)) report(`@${graph.name}`, 'two graphs have this name');
    seen.add(graph.name);
  }
  forEachGraph(module, (graph) => {
    const known = (value: Value | undefined): void => {
      if (value && graph.find(value.name) !== value)
        report(value.name, `@${graph.name} does not know this value by its name`);
    };
    graph.inputs.forEach(known);
    for (const node of graph.nodes) node.outputs.forEach(known);
    for (const node of graph.nodes)
      for (const inner of node.subgraphs)
        if (inner.parent !== graph) report(describe(node), `its subgraph @${inner.name} has another parent`);
  });
}

function checkProducers(module: Module, report: Report): void {
  forEachGraph(module, (graph) => {
    const made = new Map<Value, Node>();
    for (const node of graph.nodes) {
      if (node.graph !== graph) report(describe(node), `is listed in @${graph.name} but does not belong to it`);
      for (const value of node.outputs) {
        if (!value) continue;
        if (made.has(value))
          report(value.name, `is an output of ${describe(made.get(value)!)} and of ${describe(node)}`);
        made.set(value, node);
        if (value.producer !== node) report(value.name, `does not point to its producer ${describe(node)}`);
        if (value.data) report(value.name, 'is a constant and the output of a node');
      }
    }
    const inputs = new Set(graph.inputs);
    if (inputs.size !== graph.inputs.length) report(`@${graph.name}`, 'an input is listed twice');
    for (const value of graph.values) {
      if (inputs.has(value) && made.has(value)) report(value.name, 'is an input and the output of a node');
      if (!made.has(value) && value.producer) report(value.name, 'points to a node that does not produce it');
      if (!made.has(value) && !inputs.has(value) && !value.data) report(value.name, 'has no producer and no data');
    }
  });
}

function checkUses(module: Module, report: Report): void {
  const nodes = new Set<Node>();
  const reads = new Map<Value, number>();
  const values = new Set<Value>();
  forEachGraph(module, (graph) => {
    for (const value of graph.values) values.add(value);
    for (const node of graph.nodes) {
      nodes.add(node);
      for (const value of node.inputs) if (value) reads.set(value, (reads.get(value) ?? 0) + 1);
    }
  });
  for (const value of reads.keys()) if (!values.has(value)) report(value.name, 'is read but belongs to no graph');
  for (const value of values) {
    for (const use of value.uses) {
      if (!nodes.has(use.node)) report(value.name, `is read by ${describe(use.node)}, which is in no graph`);
      else if (use.node.inputs[use.index] !== value)
        report(value.name, `lists input ${use.index} of ${describe(use.node)}, which holds another value`);
    }
    const count = reads.get(value) ?? 0;
    if (count > value.uses.size) report(value.name, `is read ${count} times but lists ${value.uses.size} reads`);
  }
}

/** Walks lines top down; a subgraph sees what was defined before the node that holds it, and may not reuse its name. */
function checkOrder(module: Module, report: Report): void {
  const walk = (graph: Graph, outside: readonly ReadonlyMap<string, Value>[]): void => {
    const defined = new Map<string, Value>();
    for (const value of [...graph.inputs, ...graph.constants]) defined.set(value.name, value);
    for (const { name } of graph.values)
      if (outside.some((scope) => scope.has(name)))
        report(name, `a graph around @${graph.name} has a value of this name`);
    const scopes = [...outside, defined];
    const sees = (value: Value): boolean => scopes.some((scope) => scope.get(value.name) === value);
    for (const node of graph.nodes) {
      for (const value of node.inputs)
        if (value && !sees(value)) report(describe(node), `reads ${value.name}, which is not defined before it`);
      for (const inner of node.subgraphs) walk(inner, scopes);
      for (const value of node.outputs) if (value) defined.set(value.name, value);
    }
    for (const output of graph.outputs)
      if (!sees(output)) report(`@${graph.name}`, `its output ${output.name} is not defined`);
  };
  for (const graph of module.graphs) walk(graph, []);
  for (const local of module.functions) walk(local.body, []);
}

function checkInputs(module: Module, report: Report): void {
  const functions = new Set(module.functions.map((local) => local.domain));
  const bodies = new Map(module.functions.map((local) => [local.body, local]));
  forEachGraph(module, (graph) => {
    let root = graph;
    while (root.parent) root = root.parent;
    const opsets = bodies.get(root)?.opsets ?? module.opsets;
    for (const node of graph.nodes) {
      const required = requiredInputs(node.domain, node.op);
      for (let index = 0; index < required; index++)
        if (!node.inputs[index]) report(describe(node), `${node.op} needs its input ${index}`);
      // `ai.onnx` is another spelling of the standard domain.
      const domain = node.domain === 'ai.onnx' ? '' : node.domain;
      if (!opsets.has(domain) && !functions.has(domain))
        report(describe(node), `no opset is given for the domain ${JSON.stringify(domain)}`);
    }
  });
}

function checkTypes(module: Module, report: Report): void {
  forEachGraph(module, (graph) => {
    for (const { name, type, data } of graph.values) {
      if (type?.kind === 'tensor')
        for (const dim of type.shape ?? [])
          if (typeof dim === 'number' && !(Number.isInteger(dim) && dim >= 0)) report(name, `has the dimension ${dim}`);
      if (!data) continue;
      const expected = `${data.dtype}[${data.shape}]`;
      if (type?.kind !== 'tensor' || type.dtype !== data.dtype || String(type.shape) !== String(data.shape))
        report(name, `has the type ${printType(type)}, but its data is ${expected}`);
    }
  });
}

function checkFrozen(module: Module, report: Report): void {
  for (const graph of module.graphs) {
    const walk = (scope: Graph): void => {
      for (const { name, type } of scope.values) {
        if (type === undefined) report(name, 'has no type');
        else if (type.kind === 'tensor' && !type.shape?.every((dim) => typeof dim === 'number'))
          report(name, `has the type ${printType(type)}`);
      }
      for (const node of scope.nodes) node.subgraphs.forEach(walk);
    };
    walk(graph);
  }
}
