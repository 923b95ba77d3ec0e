import { createHash } from 'node:crypto';
import type { Encoding } from './encoding.ts';
import type {
  Attribute,
  Dim,
  Graph,
  LocalFunction,
  Module,
  Node,
  StateDeclaration,
  Value,
  ValueType,
} from './graph.ts';
import type { Tensor } from './tensor.ts';
import { formatElements, formatF32, formatFloatAttribute, recipeOf } from './text-data.ts';
import { defaultNodeName, quoteName, quoteWord } from './text-lex.ts';

export interface PrintOptions {
  /** `short` (default): up to 16 elements of a tensor or encoding, else a digest; `all`: everything, so that it parses. */
  readonly data?: 'short' | 'all';
}

const INLINE_ELEMENTS = 16;

/** Prints a module in the text form (grammar: text.ts). */
export function printModule(module: Module, options: PrintOptions = {}): string {
  const printer = new Printer(options);
  printer.module(module);
  return printer.text();
}

/** Prints one graph without the module around it: for messages and reports. */
export function printGraph(graph: Graph, options: PrintOptions = {}): string {
  const printer = new Printer(options);
  printer.graph(graph, 'graph', '');
  return printer.text();
}

/** One node as the text form writes it. */
export function printNode(node: Node, options: PrintOptions = {}): string {
  const printer = new Printer(options);
  printer.node(node, '');
  return printer.text().trimEnd();
}

/** A value's type as the text form writes it, such as `f32[1,64]`. */
export function printType(type: ValueType | undefined): string {
  if (type === undefined) return '?';
  switch (type.kind) {
    case 'tensor':
      return type.shape ? `${type.dtype}[${type.shape.map(printDim).join(',')}]` : type.dtype;
    case 'sequence':
    case 'optional':
      return `${type.kind}(${printType(type.element)})`;
    case 'map':
      return `map(${type.key}, ${printType(type.element)})`;
  }
}

function printDim(dim: Dim): string {
  if (typeof dim === 'number') return String(dim);
  const isBare =
    /^[A-Za-z0-9_(-](?:[A-Za-z0-9_ +*/(),^-]*[A-Za-z0-9_)])?$/.test(dim) &&
    /[A-Za-z_]/.test(dim) &&
    dim !== '_' &&
    !dim.includes('//') &&
    hasClosedParentheses(dim);
  return isBare ? dim : JSON.stringify(dim);
}

/** Whether parentheses match and every comma stands inside some. */
function hasClosedParentheses(dim: string): boolean {
  let depth = 0;
  for (const letter of dim) {
    if (letter === '(') depth += 1;
    else if (letter === ')') depth -= 1;
    if (depth < 0 || (letter === ',' && depth === 0)) return false;
  }
  return depth === 0;
}

class Printer {
  readonly #lines: string[] = [];
  readonly #all: boolean;

  constructor(options: PrintOptions) {
    this.#all = options.data === 'all';
  }

  text(): string {
    return `${this.#lines.join('\n')}\n`;
  }

  module(module: Module): void {
    const lines = this.#lines;
    lines.push('npuir 1');
    if (module.irVersion !== 10) lines.push(`ir ${module.irVersion}`);
    for (const [domain, version] of module.opsets)
      lines.push(domain === '' ? `opset ${version}` : `opset ${quoteWord(domain)} ${version}`);
    if (module.producerName !== '' || module.producerVersion !== '')
      lines.push(`producer ${JSON.stringify(module.producerName)} ${JSON.stringify(module.producerVersion)}`);
    this.#notes(module, '');
    for (const state of module.states.values()) lines.push(printState(state));
    for (const group of module.tieGroups) lines.push(`tie ${group.map((name) => `%${quoteName(name)}`).join(' ')}`);
    for (const local of module.functions) this.#function(local);
    for (const graph of module.graphs) {
      lines.push('');
      this.graph(graph, 'graph', '');
    }
  }

  #notes(owner: { doc: string; metadata: Map<string, string> }, indent: string): void {
    if (owner.doc !== '') this.#lines.push(`${indent}doc ${JSON.stringify(owner.doc)}`);
    for (const [key, value] of owner.metadata)
      this.#lines.push(`${indent}metadata ${JSON.stringify(key)} ${JSON.stringify(value)}`);
  }

  #function(local: LocalFunction): void {
    const head = `function ${quoteWord(local.domain)}::${quoteWord(local.name)}`;
    this.#lines.push('', local.overload === '' ? head : `${head} overload ${JSON.stringify(local.overload)}`);
    for (const [domain, version] of local.opsets)
      this.#lines.push(domain === '' ? `  opset ${version}` : `  opset ${quoteWord(domain)} ${version}`);
    for (const name of local.attributes) this.#lines.push(`  attribute ${quoteWord(name)}`);
    for (const bytes of local.defaults) this.#lines.push(`  default ${printBytes(bytes)}`);
    this.graph(local.body, '  graph', '  ');
    this.#lines.push('end');
  }

  /** Prints a graph's lines; `head` is what comes before its name. */
  graph(graph: Graph, head: string, indent: string): void {
    const properties = [...graph.properties].map(([name, value]) => `${quoteWord(name)} ${value}`).join(', ');
    this.#lines.push(`${head} @${quoteName(graph.name)}${properties === '' ? '' : ` {${properties}}`}`);
    const inner = `${indent}  `;
    this.#notes(graph, inner);
    for (const input of graph.inputs)
      this.#lines.push(`${inner}in ${this.#definition(input)}${this.#initial(input)}${portMark(graph, input)}`);
    const inputs = new Set(graph.inputs);
    for (const value of graph.constants)
      if (!inputs.has(value)) this.#lines.push(`${inner}${this.#definition(value)}${this.#initial(value)}`);
    for (const node of graph.nodes) this.node(node, inner);
    for (const output of graph.outputs) this.#lines.push(`${inner}out ${printRef(output)}${portMark(graph, output)}`);
    for (const [name, port] of graph.states)
      this.#lines.push(`${inner}state ${quoteWord(name)} : ${printRef(port.input)} -> ${printRef(port.output)}`);
  }

  node(node: Node, indent: string): void {
    const outputs = node.outputs.map((value) => (value ? this.#definition(value) : '_')).join(', ');
    const domain = node.domain === '' ? '' : `${quoteWord(node.domain)}::`;
    const overload = node.overload === '' ? '' : ` overload ${JSON.stringify(node.overload)} `;
    const inputs = node.inputs.map((value) => (value ? printRef(value) : '_')).join(', ');
    let line = `${indent}${outputs === '' ? '' : `${outputs} `}= ${domain}${node.op === 'const' ? '"const"' : quoteWord(node.op)}${overload}(${inputs})`;
    if (node.attributes.size > 0) {
      const attributes = [...node.attributes].map(
        ([name, attribute]) => `${quoteWord(name)} ${this.#attribute(attribute, indent)}`,
      );
      line += ` {${attributes.join(', ')}}`;
    }
    if (node.name !== defaultNodeName(node.op, node.outputs)) line += ` as ${JSON.stringify(node.name)}`;
    if (node.from.length > 0) line += `  ; from ${node.from.map(quoteWord).join(' ')}`;
    this.#lines.push(line);
  }

  #definition(value: Value): string {
    const type = value.type === undefined ? '' : ` : ${printType(value.type)}`;
    return `%${quoteName(value.name)}${type}${value.encoding ? ` ${this.#encoding(value.encoding)}` : ''}`;
  }

  #initial(value: Value): string {
    if (value.data === undefined) return '';
    const payload = value.payload === undefined ? '' : ` payload ${this.#data(value.payload)}`;
    return ` = const ${this.#data(value.data)}${payload}`;
  }

  #data(tensor: Tensor): string {
    const recipe = recipeOf(tensor);
    if (recipe !== undefined) return recipe;
    if (!this.#all && tensor.size > INLINE_ELEMENTS) return `#${tensor.digest.slice(0, 8)}`;
    const elements = formatElements(tensor);
    return tensor.shape.length === 0 && elements.length === 1 ? elements[0]! : `[${elements.join(', ')}]`;
  }

  #encoding(encoding: Encoding): string {
    const parts: string[] = [encoding.dtype];
    if (encoding.axis !== undefined) parts.push(`axis ${encoding.axis}`);
    if (encoding.block !== undefined) parts.push(`block ${encoding.block}`);
    if (encoding.channelAxis !== undefined) parts.push(`channel ${encoding.channelAxis}`);
    parts.push(`scale ${this.#numbers(encoding.scale, formatF32)}`);
    if (encoding.blockScale) parts.push(`blockscale ${this.#numbers(encoding.blockScale, String)}`);
    if (encoding.zeroPoint) parts.push(`zero ${this.#numbers(encoding.zeroPoint, String)}`);
    return `q(${parts.join(', ')})`;
  }

  #numbers(array: Float32Array | Int32Array | Uint8Array, format: (value: number) => string): string {
    if (array.length === 1) return format(array[0]!);
    if (!this.#all && array.length > INLINE_ELEMENTS) {
      const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
      return `#${createHash('sha256').update(bytes).digest('hex').slice(0, 8)}`;
    }
    return `[${Array.from(array, format).join(', ')}]`;
  }

  #attribute(attribute: Attribute, indent: string): string {
    const list = <T>(values: readonly T[], kind: string, format: (value: T) => string): string =>
      values.length === 0 ? `${kind}[]` : `[${values.map(format).join(', ')}]`;
    switch (attribute.kind) {
      case 'int':
        return String(attribute.value);
      case 'float':
        return formatFloatAttribute(attribute.value);
      case 'string':
        return JSON.stringify(attribute.value);
      case 'ints':
        return list(attribute.value, 'ints', String);
      case 'floats':
        return list(attribute.value, 'floats', formatFloatAttribute);
      case 'strings':
        return list(attribute.value, 'strings', (text) => JSON.stringify(text));
      case 'tensor':
        return this.#tensor(attribute.value);
      case 'tensors':
        return list(attribute.value, 'tensors', (tensor) => this.#tensor(tensor));
      case 'type':
        return `type ${printType(attribute.value)}`;
      case 'raw':
        return printBytes(attribute.value);
      case 'graph':
        return this.#subgraph(attribute.value, indent);
      case 'graphs':
        return list(attribute.value, 'graphs', (graph) => this.#subgraph(graph, indent));
    }
  }

  #tensor(tensor: Tensor): string {
    return `tensor ${tensor.dtype}[${tensor.shape.join(',')}] ${this.#data(tensor)}`;
  }

  /** A graph inside a node's line: its lines follow, indented, up to `end`. */
  #subgraph(graph: Graph, indent: string): string {
    const printer = new Printer({ data: this.#all ? 'all' : 'short' });
    printer.graph(graph, 'graph', `${indent}  `);
    return `${printer.text()}${indent}  end`;
  }
}

function printRef(value: Value): string {
  return `%${quoteName(value.name)}`;
}

function portMark(graph: Graph, value: Value): string {
  return graph.quantizedPorts.has(value) ? ' quantized' : '';
}

function printState(state: StateDeclaration): string {
  const capacity = state.capacity.map(printDim).join(',');
  return `state ${quoteWord(state.name)} ${state.kind} ${state.dtype}[${capacity}] axis ${state.axis} initial ${formatFloatAttribute(state.initial)}`;
}

function printBytes(bytes: Uint8Array): string {
  return `raw "${Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('hex')}"`;
}
