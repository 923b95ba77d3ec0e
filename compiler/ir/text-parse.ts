import { type Attribute, Graph, Module, type Value } from './graph.ts';
import type { Tensor } from './tensor.ts';
import { readConstant, readEncoding } from './text-constants.ts';
import { defaultNodeName, type Token } from './text-lex.ts';
import { isIntegerSpelling, TokenReader } from './text-tokens.ts';

export interface ParseOptions {
  /** Name of the text in messages; `<text>` by default. */
  readonly file?: string;
  /** The tensor behind a printed `const #digest` (the first hexadecimal digits of Tensor.digest). */
  readonly resolve?: (digest: string) => Tensor | undefined;
}

/**
 * Reads a module in the text form (grammar: text.ts).
 * @throws IR101 with line and column on text that is not the form
 * @throws IR102 on a name that is not defined, or defined twice
 * @throws IR103 on data that the text names by its digest only and `resolve` does not know
 */
export function parseModule(text: string, options: ParseOptions = {}): Module {
  return new Parser(text, options).module();
}

class Parser {
  readonly #read: TokenReader;
  readonly #resolve: (digest: string) => Tensor | undefined;
  readonly #module = new Module();
  /** Tensors by digest: equal constants of two graphs are one tensor, as weights shared by prefill and decode are. */
  readonly #tensors = new Map<string, Tensor>();

  constructor(text: string, options: ParseOptions) {
    this.#read = new TokenReader(text, options.file ?? '<text>');
    this.#resolve = options.resolve ?? (() => undefined);
  }

  module(): Module {
    const read = this.#read;
    const module = this.#module;
    read.skipNewlines();
    read.expect('word', 'npuir');
    const version = read.next;
    if (read.integer() !== 1) throw read.problem('only version 1 of the text form is known', version);
    read.endOfLine();
    let hasOpset = false;
    while (!read.is('end')) {
      const keyword = read.expect('word');
      switch (keyword.text) {
        case 'ir':
          module.irVersion = read.integer();
          break;
        case 'opset':
          if (!hasOpset) module.opsets.clear();
          hasOpset = true;
          this.#opset(module.opsets);
          break;
        case 'producer':
          module.producerName = read.string();
          module.producerVersion = read.string();
          break;
        case 'state':
          this.#stateDeclaration();
          break;
        case 'tie': {
          const group: string[] = [];
          while (read.is('value')) group.push(read.take().text);
          module.tieGroups.push(group);
          break;
        }
        case 'function':
          this.#function();
          break;
        case 'graph':
          module.graphs.push(this.#graph(undefined));
          read.accept('word', 'end');
          read.skipNewlines();
          continue;
        default:
          if (!this.#note(module, keyword)) throw read.problem(`unknown line ${keyword.text}`, keyword);
      }
      read.endOfLine();
    }
    return module;
  }

  #opset(opsets: Map<string, number>): void {
    const domain = this.#read.is('number') ? '' : this.#read.word();
    opsets.set(domain, this.#read.integer());
  }

  #note(owner: { doc: string; metadata: Map<string, string> }, keyword: Token): boolean {
    if (keyword.text === 'doc') owner.doc = this.#read.string();
    else if (keyword.text === 'metadata') {
      const key = this.#read.string();
      owner.metadata.set(key, this.#read.string());
    } else return false;
    return true;
  }

  #stateDeclaration(): void {
    const read = this.#read;
    const name = read.word();
    const kind = read.expect('word');
    const kinds = ['append', 'replace', 'accumulate', 'shift'] as const;
    const known = kinds.find((entry) => entry === kind.text);
    if (!known) throw read.problem(`a state is one of ${kinds.join(', ')}`, kind);
    const dtype = read.dtype();
    const capacity = read.shape();
    read.expect('word', 'axis');
    const axis = read.integer();
    const initial = read.accept('word', 'initial') ? read.number() : 0;
    this.#module.states.set(name, { name, kind: known, dtype, capacity, axis, initial });
  }

  #function(): void {
    const read = this.#read;
    const domain = read.word();
    read.expect('mark', '::');
    const name = read.word();
    const overload = read.accept('word', 'overload') ? read.string() : '';
    read.endOfLine();
    const opsets = new Map<string, number>();
    const attributes: string[] = [];
    const defaults: Uint8Array[] = [];
    while (!read.is('word', 'graph')) {
      const keyword = read.expect('word');
      if (keyword.text === 'opset') this.#opset(opsets);
      else if (keyword.text === 'attribute') attributes.push(read.word());
      else if (keyword.text === 'default') {
        read.expect('word', 'raw');
        defaults.push(read.bytes());
      } else throw read.problem(`unknown line ${keyword.text} of a function`, keyword);
      read.endOfLine();
    }
    read.expect('word', 'graph');
    const body = this.#graph(undefined);
    read.expect('word', 'end');
    this.#module.functions.push({ domain, name, overload, opsets, attributes, defaults, body });
  }

  /** A graph after its keyword, up to and without `end`, the next graph or the end of the text. */
  #graph(parent: Graph | undefined): Graph {
    const read = this.#read;
    const graph = new Graph(read.expect('graph').text, parent);
    if (read.is('mark', '{'))
      read.list('{', '}', () => {
        const name = read.word();
        graph.properties.set(name, read.number());
      });
    read.endOfLine();
    while (!read.is('end') && !['end', 'graph', 'function'].some((word) => read.is('word', word))) {
      if (read.is('value') || read.is('mark')) this.#definition(graph);
      else this.#graphLine(graph);
      read.endOfLine();
    }
    return graph;
  }

  #graphLine(graph: Graph): void {
    const read = this.#read;
    const keyword = read.expect('word');
    switch (keyword.text) {
      case 'in': {
        const value = this.#declare(graph);
        if (!value) throw read.problem('an input needs a name', keyword);
        graph.inputs.push(value);
        if (read.accept('mark', '=')) this.#constant(value);
        if (read.accept('word', 'quantized')) graph.quantizedPorts.add(value);
        break;
      }
      case 'out': {
        const value = this.#reference(graph);
        graph.outputs.push(value);
        if (read.accept('word', 'quantized')) graph.quantizedPorts.add(value);
        break;
      }
      case 'state': {
        const name = read.word();
        read.expect('mark', ':');
        const input = this.#reference(graph);
        read.expect('mark', '->');
        graph.states.set(name, { input, output: this.#reference(graph) });
        break;
      }
      default:
        if (!this.#note(graph, keyword)) throw read.problem(`unknown line ${keyword.text} of a graph`, keyword);
    }
  }

  #definition(graph: Graph): void {
    const read = this.#read;
    const start = read.next;
    const outputs: (Value | undefined)[] = [];
    while (!read.is('mark', '=')) {
      if (outputs.length > 0) read.expect('mark', ',');
      outputs.push(this.#declare(graph));
    }
    read.expect('mark', '=');
    if (read.is('word', 'const')) {
      const [value] = outputs;
      if (outputs.length !== 1 || !value) throw read.problem('a constant has one name', start);
      this.#constant(value);
    } else this.#node(graph, outputs);
  }

  /** `%name : type q(...)`, or `_` for an output that nobody asked for. */
  #declare(graph: Graph): Value | undefined {
    const read = this.#read;
    if (read.accept('mark', '_')) return undefined;
    const token = read.expect('value');
    if (graph.uniqueNameTaken(token.text)) throw read.unknown(`%${token.text} is defined twice`, token);
    const value = graph.addValue(token.text);
    if (read.accept('mark', ':')) value.type = read.type();
    if (read.accept('word', 'q')) value.encoding = readEncoding(read);
    return value;
  }

  /** A value that an earlier line of this graph or of a graph around it defined. */
  #reference(graph: Graph): Value {
    const read = this.#read;
    const token = read.expect('value');
    for (let scope: Graph | undefined = graph; scope; scope = scope.parent) {
      const value = scope.find(token.text);
      // The outputs of the line being read have names already, but nothing behind them yet.
      if (value && (value.producer || value.data || scope.inputs.includes(value))) return value;
    }
    throw read.unknown(`%${token.text} is not defined before it is read`, token);
  }

  /** `const <data>`, and `payload <integers>` where an encoding's integers were chosen. */
  #constant(value: Value): void {
    const read = this.#read;
    const start = read.expect('word', 'const');
    const { type, encoding } = value;
    if (type?.kind !== 'tensor' || !type.shape?.every((dim) => typeof dim === 'number'))
      throw read.problem(`the constant %${value.name} needs a type with a fixed shape`, start);
    const shape = type.shape as readonly number[];
    value.data = this.#share(readConstant(read, type.dtype, shape, this.#resolve));
    const payload = read.accept('word', 'payload');
    if (!payload) return;
    if (!encoding) throw read.problem('a payload needs an encoding', payload);
    value.payload = this.#share(readConstant(read, encoding.dtype, shape, this.#resolve));
  }

  #share(tensor: Tensor): Tensor {
    const known = this.#tensors.get(tensor.digest);
    if (known) return known;
    this.#tensors.set(tensor.digest, tensor);
    return tensor;
  }

  /** A node after its `=`: `domain::Op overload "x" (inputs) {attributes} as "name"  ; from names`. */
  #node(graph: Graph, outputs: readonly (Value | undefined)[]): void {
    const read = this.#read;
    let domain = '';
    let op = read.word();
    if (read.accept('mark', '::')) {
      domain = op;
      op = read.word();
    }
    const overload = read.accept('word', 'overload') ? read.string() : '';
    const inputs = read.list('(', ')', () => (read.accept('mark', '_') ? undefined : this.#reference(graph)));
    const attributes = new Map<string, Attribute>();
    if (read.is('mark', '{'))
      read.list('{', '}', () => {
        const name = read.word();
        attributes.set(name, this.#attribute(graph));
      });
    const name = read.accept('word', 'as') ? read.string() : defaultNodeName(op, outputs);
    const from: string[] = [];
    if (read.accept('mark', ';')) {
      read.expect('word', 'from');
      while (read.is('word') || read.is('string')) from.push(read.word());
    }
    graph.addNode({ op, domain, overload, name, inputs, outputs, attributes, from });
  }

  #attribute(graph: Graph): Attribute {
    const read = this.#read;
    const start = read.next;
    for (const kind of ['ints', 'floats', 'strings', 'tensors', 'graphs'] as const) {
      if (!read.accept('word', kind)) continue;
      read.expect('mark', '[');
      read.expect('mark', ']');
      return { kind, value: [] };
    }
    if (!read.is('mark', '[')) return this.#single(graph);
    const items = read.list('[', ']', () => this.#single(graph));
    const list = listAttribute(items);
    if (!list) throw read.problem('a list needs items of one kind (an empty one is written ints[] or the like)', start);
    return list;
  }

  #single(graph: Graph): Attribute {
    const read = this.#read;
    if (read.is('string')) return { kind: 'string', value: read.take().text };
    if (read.is('number')) {
      const token = read.next;
      if (!isIntegerSpelling(token.text)) return { kind: 'float', value: read.number() };
      return { kind: 'int', value: read.literal() as number | bigint };
    }
    const keyword = read.expect('word');
    switch (keyword.text) {
      case 'nan':
        return { kind: 'float', value: Number.NaN };
      case 'tensor': {
        const dtype = read.dtype();
        return { kind: 'tensor', value: this.#share(readConstant(read, dtype, read.fixedShape(), this.#resolve)) };
      }
      case 'type': {
        const type = read.type();
        if (!type) throw read.problem('a type attribute needs a type', keyword);
        return { kind: 'type', value: type };
      }
      case 'raw':
        return { kind: 'raw', value: read.bytes() };
      case 'graph': {
        const value = this.#graph(graph);
        read.expect('word', 'end');
        return { kind: 'graph', value };
      }
      default:
        throw read.problem(`${keyword.text} is not an attribute's value`, keyword);
    }
  }
}

const LIST_KINDS = { int: 'ints', float: 'floats', string: 'strings', tensor: 'tensors', graph: 'graphs' } as const;

/** Single items of one kind as a list attribute; undefined when they differ. */
function listAttribute(items: readonly Attribute[]): Attribute | undefined {
  const kind = items[0]?.kind;
  if (kind === undefined || !(kind in LIST_KINDS) || items.some((item) => item.kind !== kind)) return undefined;
  return { kind: LIST_KINDS[kind as keyof typeof LIST_KINDS], value: items.map((item) => item.value) } as Attribute;
}
