import { NpucError } from '../errors.ts';
import type { DType } from './dtype.ts';
import type { Encoding } from './encoding.ts';
import type { Tensor } from './tensor.ts';

/** A dimension: a number, or a symbolic expression in mathjs syntax such as `past + tokens` (compiler/ir/dims.ts). */
export type Dim = number | string;
export type Shape = readonly Dim[];

export type ValueType =
  | { readonly kind: 'tensor'; readonly dtype: DType /** Absent: the rank is unknown. */; readonly shape?: Shape }
  | { readonly kind: 'sequence'; readonly element: ValueType | undefined }
  | { readonly kind: 'optional'; readonly element: ValueType | undefined }
  | { readonly kind: 'map'; readonly key: DType; readonly element: ValueType | undefined };

export function tensorType(dtype: DType, shape?: Shape): ValueType {
  return shape === undefined ? { kind: 'tensor', dtype } : { kind: 'tensor', dtype, shape };
}

/** An attribute of a node, typed as ONNX AttributeProto; integers outside 2^53 stay bigint. */
export type Attribute =
  | { readonly kind: 'int'; readonly value: number | bigint }
  | { readonly kind: 'float'; readonly value: number }
  | { readonly kind: 'string'; readonly value: string }
  | { readonly kind: 'tensor'; readonly value: Tensor }
  | { readonly kind: 'graph'; readonly value: Graph }
  | { readonly kind: 'ints'; readonly value: readonly (number | bigint)[] }
  | { readonly kind: 'floats'; readonly value: readonly number[] }
  | { readonly kind: 'strings'; readonly value: readonly string[] }
  | { readonly kind: 'tensors'; readonly value: readonly Tensor[] }
  | { readonly kind: 'graphs'; readonly value: readonly Graph[] }
  | { readonly kind: 'type'; readonly value: ValueType }
  /** An AttributeProto kept byte for byte: sparse tensors, type lists, references to a function's attribute. */
  | { readonly kind: 'raw'; readonly value: Uint8Array };

/**
 * What a source format says beyond the IR's own fields. It is carried through rewrites that keep the object, is written
 * back by the same format, and means nothing to passes.
 */
export interface Extras {
  readonly doc?: string;
  readonly metadata?: ReadonlyMap<string, string>;
  /** Fields that the IR has no place for, as protobuf bytes of the ONNX message they stood in. */
  readonly unknown?: Uint8Array;
}

/** One input slot of one node that reads a value. */
export interface Use {
  readonly node: Node;
  readonly index: number;
}

/** A value of a graph: an input, a constant (`data`) or one output of one node. Integers live in `encoding`, never in `type`. */
export class Value {
  name: string;
  type: ValueType | undefined;
  producer: Node | undefined;
  /** Reads by nodes, in no particular order; graph outputs are not listed here. */
  readonly uses: Set<Use> = new Set();
  data: Tensor | undefined;
  encoding: Encoding | undefined;
  /** Integers chosen for this constant: its shape, the encoding's dtype. Without them rounding to nearest makes them. */
  payload: Tensor | undefined;
  extras: Extras | undefined;

  constructor(name: string, type?: ValueType, data?: Tensor) {
    this.name = name;
    this.type = type;
    this.data = data;
  }

  /** The shape of a tensor value. @throws XX001 when the rank is unknown: run inferShapes first. */
  get shape(): Shape {
    if (this.type?.kind === 'tensor' && this.type.shape) return this.type.shape;
    throw new NpucError('XX001', { message: `the shape of ${this.name} is not known`, where: this.name });
  }

  /** The shape with every dimension a number. @throws XX001 otherwise. */
  get dims(): readonly number[] {
    const shape = this.shape;
    if (shape.every((dim) => typeof dim === 'number')) return shape as readonly number[];
    throw new NpucError('XX001', { message: `the shape [${shape}] of ${this.name} is not fixed`, where: this.name });
  }

  get dtype(): DType {
    if (this.type?.kind === 'tensor') return this.type.dtype;
    throw new NpucError('XX001', { message: `${this.name} has no known element type`, where: this.name });
  }

  /** The nodes that read this value, each once, in no particular order. */
  get consumers(): Node[] {
    return [...new Set([...this.uses].map((use) => use.node))];
  }
}

export interface NodeInit {
  op: string;
  domain?: string;
  name?: string;
  inputs: readonly (Value | undefined)[];
  outputs: readonly (Value | undefined)[];
  attributes?: Readonly<Record<string, Attribute>> | ReadonlyMap<string, Attribute>;
  from?: Iterable<string>;
  /** An overload of a local function (IR version 10). */
  overload?: string;
  extras?: Extras | undefined;
}

/** An operation. Inputs may be absent (undefined), as ONNX's empty names. */
export class Node {
  readonly op: string;
  /** '' is the ONNX domain. */
  readonly domain: string;
  readonly overload: string;
  name: string;
  readonly outputs: readonly (Value | undefined)[];
  readonly attributes: Map<string, Attribute>;
  /** Names of the user's own nodes that this node came from, in order, each once. */
  from: readonly string[];
  graph: Graph | undefined;
  extras: Extras | undefined;
  readonly #inputs: (Value | undefined)[];
  /** The entry in its value's uses, per input. */
  readonly #uses: (Use | undefined)[];

  constructor(init: NodeInit) {
    this.op = init.op;
    this.domain = init.domain ?? '';
    this.overload = init.overload ?? '';
    this.name = init.name ?? '';
    this.outputs = [...init.outputs];
    this.attributes =
      init.attributes instanceof Map ? new Map(init.attributes) : new Map(Object.entries(init.attributes ?? {}));
    this.from = [...new Set(init.from ?? [])];
    this.extras = init.extras;
    this.#inputs = new Array(init.inputs.length).fill(undefined);
    this.#uses = new Array(init.inputs.length).fill(undefined);
    init.inputs.forEach((value, index) => this.setInput(index, value));
    for (const value of this.outputs) if (value) value.producer = this;
  }

  get inputs(): readonly (Value | undefined)[] {
    return this.#inputs;
  }

  setInput(index: number, value: Value | undefined): void {
    const before = this.#uses[index];
    if (before) this.#inputs[index]!.uses.delete(before);
    while (this.#inputs.length <= index) {
      this.#inputs.push(undefined);
      this.#uses.push(undefined);
    }
    this.#inputs[index] = value;
    const use = value && { node: this, index };
    this.#uses[index] = use;
    if (use) value.uses.add(use);
  }

  /** Drops input slots from `length` on. */
  truncateInputs(length: number): void {
    for (let index = length; index < this.#inputs.length; index++) this.setInput(index, undefined);
    this.#inputs.length = Math.min(length, this.#inputs.length);
    this.#uses.length = this.#inputs.length;
  }

  /** The input at an index that must be there. @throws XX001 */
  input(index: number): Value {
    const value = this.#inputs[index];
    if (!value) throw new NpucError('XX001', { message: `${this.op} has no input ${index}`, where: this.name });
    return value;
  }

  /** The output at an index (0 by default) that must be there. @throws XX001 */
  output(index = 0): Value {
    const value = this.outputs[index];
    if (!value) throw new NpucError('XX001', { message: `${this.op} has no output ${index}`, where: this.name });
    return value;
  }

  int(name: string, fallback: number): number;
  int(name: string): number | undefined;
  int(name: string, fallback?: number): number | undefined {
    const attribute = this.attributes.get(name);
    return attribute?.kind === 'int' ? Number(attribute.value) : fallback;
  }

  float(name: string, fallback: number): number {
    const attribute = this.attributes.get(name);
    return attribute?.kind === 'float' ? attribute.value : fallback;
  }

  string(name: string, fallback: string): string {
    const attribute = this.attributes.get(name);
    return attribute?.kind === 'string' ? attribute.value : fallback;
  }

  ints(name: string): number[] | undefined {
    const attribute = this.attributes.get(name);
    return attribute?.kind === 'ints' ? attribute.value.map(Number) : undefined;
  }

  floats(name: string): readonly number[] | undefined {
    const attribute = this.attributes.get(name);
    return attribute?.kind === 'floats' ? attribute.value : undefined;
  }

  /** The subgraphs of If, Loop, Scan and the like. */
  get subgraphs(): Graph[] {
    const graphs: Graph[] = [];
    for (const attribute of this.attributes.values()) {
      if (attribute.kind === 'graph') graphs.push(attribute.value);
      else if (attribute.kind === 'graphs') graphs.push(...attribute.value);
    }
    return graphs;
  }
}

/** What a graph does with one of the module's states: the value that brings it in and the one that takes it out. */
export interface StatePort {
  readonly input: Value;
  readonly output: Value;
}

/**
 * Nodes in topological order over named values. A subgraph has a parent and reads the parent's values directly.
 * A graph owns its mutation: use its methods so that producers, uses and names stay right.
 */
export class Graph {
  name: string;
  readonly parent: Graph | undefined;
  readonly inputs: Value[] = [];
  readonly outputs: Value[] = [];
  /** In topological order; `sortNodes` restores it after rewrites. */
  nodes: Node[] = [];
  /** Inputs and outputs that are integers at the graph's boundary, written with their value's encoding. */
  readonly quantizedPorts: Set<Value> = new Set();
  readonly states: Map<string, StatePort> = new Map();
  /** Facts such as `tokens` and `cache` that the text form prints and targets read. */
  readonly properties: Map<string, number> = new Map();
  doc = '';
  readonly metadata: Map<string, string> = new Map();
  /** ONNX fields of the graph that have no place here (quantization annotations). */
  unknown: Uint8Array | undefined;
  readonly #names: Map<string, Value> = new Map();
  /** Subgraphs below this graph, so that a new name here hides none of theirs. */
  readonly #children: Set<Graph> = new Set();
  #counter = 0;

  constructor(name: string, parent?: Graph) {
    this.name = name;
    this.parent = parent;
    if (parent) parent.#children.add(this);
  }

  /** A value by its name in this graph (not in the parent). */
  find(name: string): Value | undefined {
    return this.#names.get(name);
  }

  /** Every value of this graph. */
  get values(): IterableIterator<Value> {
    return this.#names.values();
  }

  /** Constants of this graph, in order of their making. */
  get constants(): Value[] {
    return [...this.#names.values()].filter((value) => value.data !== undefined);
  }

  /** Makes a value; a taken name gets a suffix. */
  addValue(name: string, type?: ValueType, data?: Tensor): Value {
    const value = new Value(this.uniqueName(name), type, data);
    this.#names.set(value.name, value);
    return value;
  }

  addInput(name: string, type?: ValueType): Value {
    const value = this.addValue(name, type);
    this.inputs.push(value);
    return value;
  }

  addConstant(name: string, data: Tensor): Value {
    return this.addValue(name, tensorType(data.dtype, data.shape), data);
  }

  /** A name not used in this graph, its parents or its subgraphs. */
  uniqueName(name: string): string {
    if (name !== '' && !this.#isTaken(name)) return name;
    const stem = name === '' ? 'v' : name;
    for (;;) {
      const candidate = `${stem}_${this.#counter++}`;
      if (!this.#isTaken(candidate)) return candidate;
    }
  }

  #isTaken(name: string): boolean {
    return this.#isTakenAbove(name) || this.#isTakenBelow(name);
  }

  #isTakenAbove(name: string): boolean {
    for (let scope: Graph | undefined = this; scope; scope = scope.parent) if (scope.#names.has(name)) return true;
    return false;
  }

  #isTakenBelow(name: string): boolean {
    for (const child of this.#children) if (child.#names.has(name) || child.#isTakenBelow(name)) return true;
    return false;
  }

  /** Whether a name is used in this graph, its parents or its subgraphs. */
  uniqueNameTaken(name: string): boolean {
    return this.#isTaken(name);
  }

  /** Renames a value. @throws XX001 when the name is taken. */
  renameValue(value: Value, name: string): void {
    if (value.name === name) return;
    if (this.#names.has(name))
      throw new NpucError('XX001', { message: `the name ${name} is taken`, where: value.name });
    this.#names.delete(value.name);
    value.name = name;
    this.#names.set(name, value);
  }

  /** Appends a node, or puts it before another one. */
  addNode(init: NodeInit, before?: Node): Node {
    const node = new Node(init);
    node.graph = this;
    if (before) this.nodes.splice(this.nodes.indexOf(before), 0, node);
    else this.nodes.push(node);
    return node;
  }

  /** Makes a node with one fresh output and returns that output; the node is named `<output>/<op>`. */
  emit(
    op: string,
    inputs: readonly (Value | undefined)[],
    options: {
      name?: string;
      type?: ValueType;
      attributes?: Record<string, Attribute>;
      domain?: string;
      from?: Iterable<string>;
      before?: Node;
    } = {},
  ): Value {
    const output = this.addValue(options.name ?? op.toLowerCase(), options.type);
    this.addNode(
      {
        op,
        inputs,
        outputs: [output],
        name: `${output.name}/${op}`,
        ...(options.domain === undefined ? {} : { domain: options.domain }),
        ...(options.attributes === undefined ? {} : { attributes: options.attributes }),
        ...(options.from === undefined ? {} : { from: options.from }),
      },
      options.before,
    );
    return output;
  }

  /** Takes a node out; its outputs must have no readers left. Its outputs' names become free. */
  removeNode(node: Node): void {
    node.inputs.forEach((_, index) => node.setInput(index, undefined));
    for (const graph of node.subgraphs) {
      graph.clear();
      this.#children.delete(graph);
    }
    for (const output of node.outputs) if (output) this.removeValue(output);
    const at = this.nodes.indexOf(node);
    if (at >= 0) this.nodes.splice(at, 1);
    node.graph = undefined;
  }

  /** Forgets a value that nothing reads. */
  removeValue(value: Value): void {
    if (this.#names.get(value.name) === value) this.#names.delete(value.name);
    value.producer = undefined;
  }

  /** Removes every node: a subgraph that is dropped gives back its reads of the parent's values. */
  clear(): void {
    for (const node of [...this.nodes].reverse()) this.removeNode(node);
  }

  /** Every reader of `from`, graph outputs and states included, reads `to` instead. */
  replaceUses(from: Value, to: Value): void {
    for (const use of [...from.uses]) use.node.setInput(use.index, to);
    this.outputs.forEach((output, index) => {
      if (output === from) this.outputs[index] = to;
    });
    for (const [name, port] of this.states) {
      if (port.output === from) this.states.set(name, { input: port.input, output: to });
    }
  }

  isOutput(value: Value): boolean {
    return this.outputs.includes(value);
  }

  /** Whether anything at all reads the value. */
  isUsed(value: Value): boolean {
    return value.uses.size > 0 || this.isOutput(value);
  }

  /** Removes nodes and constants that nothing reads, last ones first. Returns how many nodes went. */
  prune(): number {
    let removed = 0;
    // A subgraph may give out a value of this graph without any node reading it.
    let captured = capturedOutputs(this);
    for (const node of [...this.nodes].reverse()) {
      if (node.outputs.some((output) => output && (this.isUsed(output) || captured.has(output)))) continue;
      const gaveOut = node.subgraphs.length > 0;
      this.removeNode(node);
      if (gaveOut) captured = capturedOutputs(this);
      removed++;
    }
    for (const value of this.constants) if (!this.isUsed(value) && !captured.has(value)) this.removeValue(value);
    return removed;
  }

  /** Restores topological order, keeping the present order where it is free. @throws XX001 on a cycle. */
  sortNodes(): void {
    const done = new Set<Node>();
    const order: Node[] = [];
    const own = new Set(this.nodes);
    // Iterative depth-first search: graphs of 100,000 nodes in a chain must not overflow the stack.
    for (const root of this.nodes) {
      const stack: { node: Node; needs: Node[] }[] = [{ node: root, needs: [] }];
      const open = new Set<Node>();
      while (stack.length > 0) {
        const top = stack[stack.length - 1]!;
        if (done.has(top.node)) {
          stack.pop();
          continue;
        }
        if (!open.has(top.node)) {
          open.add(top.node);
          top.needs = nodeReads(top.node).flatMap((value) =>
            value.producer && own.has(value.producer) ? [value.producer] : [],
          );
        }
        const next = top.needs.find((node) => !done.has(node));
        if (next) {
          if (open.has(next)) throw new NpucError('XX001', { message: 'the graph has a cycle', where: next.name });
          stack.push({ node: next, needs: [] });
        } else {
          done.add(top.node);
          order.push(top.node);
          stack.pop();
        }
      }
    }
    this.nodes = order;
  }
}

/** The values that subgraphs at any depth give out: among them may be captured values of this graph. */
export function capturedOutputs(graph: Graph): Set<Value> {
  const found = new Set<Value>();
  const walk = (scope: Graph): void => {
    for (const node of scope.nodes)
      for (const inner of node.subgraphs) {
        for (const output of inner.outputs) found.add(output);
        walk(inner);
      }
  };
  walk(graph);
  return found;
}

/** Every value that a node reads, reads inside its subgraphs included. */
export function nodeReads(node: Node): Value[] {
  const reads = node.inputs.filter((value): value is Value => value !== undefined);
  for (const graph of node.subgraphs) {
    for (const inner of graph.nodes) reads.push(...nodeReads(inner));
    reads.push(...graph.outputs);
  }
  return reads;
}

/** A state that outlives one run of a graph. Its shape may differ between graphs; `capacity` is the whole. */
export interface StateDeclaration {
  readonly name: string;
  readonly dtype: DType;
  readonly kind: 'append' | 'replace' | 'accumulate' | 'shift';
  /** The axis along which an appended state grows. */
  readonly axis: number;
  readonly capacity: Shape;
  readonly initial: number;
}

/** A local function of an ONNX model, kept as a graph with its signature. */
export interface LocalFunction {
  readonly domain: string;
  readonly name: string;
  readonly overload: string;
  readonly attributes: readonly string[];
  /** Attributes with defaults, as raw AttributeProto bytes. */
  readonly defaults: readonly Uint8Array[];
  readonly opsets: ReadonlyMap<string, number>;
  readonly body: Graph;
}

/** What is compiled: one or more graphs over one table of weights. */
export class Module {
  readonly graphs: Graph[] = [];
  readonly states: Map<string, StateDeclaration> = new Map();
  /** Names of values, in any graph, that must share one encoding. */
  readonly tieGroups: string[][] = [];
  readonly opsets: Map<string, number> = new Map([['', 21]]);
  readonly functions: LocalFunction[] = [];
  readonly metadata: Map<string, string> = new Map();
  irVersion = 10;
  producerName = '';
  producerVersion = '';
  doc = '';
  /** ONNX fields of the model that have no place here (domain, model version, training, device configurations). */
  unknown: Uint8Array | undefined;

  /** The graph of a name. @throws XX001 */
  graph(name?: string): Graph {
    const found = name === undefined ? this.graphs[0] : this.graphs.find((graph) => graph.name === name);
    if (!found) throw new NpucError('XX001', { message: `the module has no graph ${name ?? ''}` });
    return found;
  }

  /** Every constant tensor, each once however many graphs read it. */
  get weights(): Set<Tensor> {
    const tensors = new Set<Tensor>();
    for (const graph of this.graphs) for (const value of graph.constants) tensors.add(value.data!);
    return tensors;
  }
}

export function intAttribute(value: number | bigint): Attribute {
  return { kind: 'int', value };
}
export function intsAttribute(value: readonly (number | bigint)[]): Attribute {
  return { kind: 'ints', value };
}
export function floatAttribute(value: number): Attribute {
  return { kind: 'float', value };
}
export function stringAttribute(value: string): Attribute {
  return { kind: 'string', value };
}
