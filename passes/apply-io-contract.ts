import { NpucError } from '../compiler/errors.ts';
import { DTYPES } from '../compiler/ir/dtype.ts';
import {
  type Attribute,
  type Graph,
  intAttribute,
  intsAttribute,
  type Module,
  type Node,
  tensorType,
  type Value,
} from '../compiler/ir/graph.ts';
import { Tensor } from '../compiler/ir/tensor.ts';
import type { IoContract } from './io-contract.ts';

export interface ContractShape {
  /** New tokens per run. */
  readonly tokens: number;
  /** The whole context a graph sees: past slots are cache - tokens. */
  readonly cache: number;
  /** Overrides the contract's choice; `none` leaves the logits out. */
  readonly logits?: 'all' | 'none';
}

/**
 * Rewrites the semantic decoder for one contract and one fixed shape, in place: rotary embedding and attention over states
 * become the products that NPUs take, inputs and outputs get the contract's names and layouts. Grouped-query attention
 * regroups the queries to [kv, g * tokens, hd] and never repeats keys or values.
 *
 *     semantic: RotaryEmbedding(q), RotaryEmbedding(k), Attention(q, k, v, mask, past_k, past_v)
 *     lowered:  MatMul(regroup(rope(q)), Concat(past_k, rope(k))) -> Add mask -> Softmax -> MatMul(Concat(past_v, v))
 *
 * @throws IM410 when the cache is not larger than the tokens
 */
export function applyIoContract(module: Module, contract: IoContract, shape: ContractShape): void {
  if (shape.cache <= shape.tokens) {
    throw new NpucError('IM410', {
      message: `--cache ${shape.cache} is not larger than --tokens ${shape.tokens}`,
      hint: 'the cache is the whole context that a graph sees, the new tokens included',
    });
  }
  const graph = module.graph();
  new ContractLowering(graph, contract, shape).run();
  // TensorScatter is of opset 24.
  if (contract.update === 'in-graph') module.opsets.set('', Math.max(24, module.opsets.get('')!));
  graph.properties.set('tokens', shape.tokens);
  graph.properties.set('cache', shape.cache);
}

/** Holds what the steps of one lowering share; used once. */
class ContractLowering {
  readonly graph: Graph;
  readonly contract: IoContract;
  readonly tokens: number;
  readonly cache: number;
  readonly logits: 'all' | 'none';
  #rotary: { cos: Value; sin: Value } | undefined;

  constructor(graph: Graph, contract: IoContract, shape: ContractShape) {
    this.graph = graph;
    this.contract = contract;
    this.tokens = shape.tokens;
    this.cache = shape.cache;
    this.logits = shape.logits ?? (contract.logits === 'decode' && shape.tokens > 1 ? 'none' : 'all');
  }

  run(): void {
    this.bindShapes();
    this.replaceTokens();
    this.renameInput('attention_mask', this.contract.names.mask);
    if (this.contract.update === 'in-graph') this.flattenPositions();
    const attentions = this.graph.nodes.filter((node) => node.op === 'Attention');
    attentions.forEach((node, layer) => this.lowerAttention(node, layer));
    const logits = this.graph.outputs[0]!;
    this.graph.outputs.length = 0;
    if (this.logits === 'all') {
      this.graph.renameValue(logits, this.contract.names.logits);
      this.graph.outputs.push(logits);
    }
    for (const port of this.graph.states.values()) this.graph.outputs.push(port.output);
    this.graph.sortNodes();
    this.graph.prune();
    this.orderInputs();
  }

  /** Every symbolic dimension becomes a number; Reshape targets written with -1 too. */
  bindShapes(): void {
    const known: Record<string, number> = {
      tokens: this.tokens,
      past: this.cache - this.tokens,
      'past + tokens': this.cache,
    };
    for (const value of this.graph.values) {
      if (value.type?.kind !== 'tensor' || !value.type.shape) continue;
      value.type = tensorType(
        value.type.dtype,
        value.type.shape.map((dim) => (typeof dim === 'number' ? dim : known[dim]!)),
      );
    }
    for (const node of this.graph.nodes) {
      if (node.op === 'Reshape') node.setInput(1, this.shapeConstant(node.output().dims));
    }
  }

  shapeConstant(dims: readonly number[]): Value {
    const name = `shape.${dims.join('x')}`;
    return this.graph.find(name) ?? this.graph.addConstant(name, Tensor.of('i64', [dims.length], dims));
  }

  replaceTokens(): void {
    const { graph, contract } = this;
    const ids = graph.find('input_ids')!;
    if (contract.embedding === 'ids') {
      this.renameInput('input_ids', contract.names.tokens);
      return;
    }
    for (const lookup of ids.consumers) {
      const rows = graph.addInput(contract.names.tokens, lookup.output().type);
      graph.inputs.unshift(graph.inputs.pop()!);
      graph.replaceUses(lookup.output(), rows);
      graph.removeNode(lookup);
    }
    this.removeInput(ids);
  }

  /** Positions as a vector; the first of them is where new rows are written. */
  flattenPositions(): void {
    const { graph, contract, tokens } = this;
    const positions = graph.find('position_ids')!;
    graph.renameValue(positions, contract.names.positions!);
    positions.type = tensorType('i32', [tokens]);
  }

  renameInput(from: string, to: string): void {
    this.graph.renameValue(this.graph.find(from)!, to);
  }

  removeInput(value: Value): void {
    this.graph.inputs.splice(this.graph.inputs.indexOf(value), 1);
    this.graph.removeValue(value);
  }

  /** Cosine and sine in the contract's form, made once for all layers. */
  rotaryTables(rope: Node): { cos: Value; sin: Value } {
    if (this.#rotary) return this.#rotary;
    const { graph, contract, tokens } = this;
    const half = rope.input(1).dims[1]!;
    const positions = rope.input(3);
    const gather = (name: string, table: Value): Value => {
      const rows = graph.emit('Gather', [table, positions], {
        name: `${name}.rows`,
        type: tensorType('f32', [...positions.dims, half]),
        attributes: { axis: intAttribute(0) },
      });
      return this.reshape(name, rows, [1, 1, tokens, half]);
    };
    if (contract.rotary === 'stacked') {
      const rope_ = graph.addInput(contract.names.rope!, tensorType('f32', [1, 2, tokens, 2 * half]));
      this.#rotary = { cos: this.tableOf(rope_, 0, half), sin: this.tableOf(rope_, 1, half) };
    } else if (contract.rotary === 'in-graph') {
      this.#rotary = { cos: gather('rope_cos', rope.input(1)), sin: gather('rope_sin', rope.input(2)) };
    } else {
      const type = tensorType('f32', contract.rotary === 'half' ? [1, 1, tokens, half] : [1, tokens, 1, 2 * half]);
      this.#rotary = { cos: graph.addInput(contract.names.cos!, type), sin: graph.addInput(contract.names.sin!, type) };
    }
    return this.#rotary;
  }

  /** Cosines or sines of a stacked table, [1,1,t,hd/2]: both halves of its rows are the same. */
  tableOf(table: Value, index: number, half: number): Value {
    const bound = (name: string, values: readonly number[]): Value =>
      this.graph.find(name) ?? this.graph.addConstant(name, Tensor.of('i64', [values.length], values));
    const bounds = [
      bound(`rope.from.${index}`, [index, 0]),
      bound(`rope.to.${index}`, [index + 1, half]),
      bound('rope.axes', [1, 3]),
    ];
    return this.graph.emit('Slice', [table, ...bounds], {
      name: index === 0 ? 'rope.cos' : 'rope.sin',
      type: tensorType('f32', [1, 1, this.tokens, half]),
    });
  }

  emit(
    op: string,
    name: string,
    inputs: Value[],
    shape: readonly number[],
    from: Node,
    attributes?: Record<string, Attribute>,
  ): Value {
    return this.graph.emit(op, inputs, {
      name,
      type: tensorType('f32', shape),
      from: from.from,
      ...(attributes ? { attributes } : {}),
    });
  }

  reshape(name: string, input: Value, shape: readonly number[], from?: Node): Value {
    return this.graph.emit('Reshape', [input, this.shapeConstant(shape)], {
      name,
      type: tensorType('f32', shape),
      ...(from ? { from: from.from } : {}),
    });
  }

  permute(name: string, input: Value, order: readonly number[], from: Node): Value {
    if (order.every((axis, i) => axis === i)) return input;
    const dims = input.dims;
    const shape = order.map((axis) => dims[axis]!);
    return this.emit('Transpose', name, [input], shape, from, { perm: intsAttribute(order) });
  }

  /** Rotates [.., hd] rows; `x` is [1,heads,t,hd] for the half form and [1,t,heads,hd] for the full form. */
  rotate(role: string, x: Value, rope: Node): Value {
    const { cos, sin } = this.rotaryTables(rope);
    const dims = x.dims;
    const half = dims[3]! / 2;
    const halfDims = [dims[0]!, dims[1]!, dims[2]!, half];
    const parts = [
      this.graph.addValue(`${role}.a`, tensorType('f32', halfDims)),
      this.graph.addValue(`${role}.b`, tensorType('f32', halfDims)),
    ];
    const lengths =
      this.graph.find(`split.${half}`) ?? this.graph.addConstant(`split.${half}`, Tensor.of('i64', [2], [half, half]));
    this.graph.addNode({
      op: 'Split',
      name: `${role}.split`,
      inputs: [x, lengths],
      outputs: parts,
      attributes: { axis: intAttribute(3) },
      from: rope.from,
    });
    const [a, b] = parts as [Value, Value];
    const axis = { axis: intAttribute(3) };
    if (this.contract.rotary === 'full') {
      const rotated = this.emit('Concat', `${role}.rotated`, [b, a], dims, rope, axis);
      const straight = this.emit('Mul', `${role}.cos`, [x, cos], dims, rope);
      const crossed = this.emit('Mul', `${role}.sin`, [rotated, sin], dims, rope);
      return this.emit('Add', `${role}.out`, [straight, crossed], dims, rope);
    }
    const product = (name: string, left: Value, right: Value): Value =>
      this.emit('Mul', `${role}.${name}`, [left, right], halfDims, rope);
    const first = this.emit(
      'Sub',
      `${role}.first`,
      [product('a_cos', a, cos), product('b_sin', b, sin)],
      halfDims,
      rope,
    );
    const second = this.emit(
      'Add',
      `${role}.second`,
      [product('b_cos', b, cos), product('a_sin', a, sin)],
      halfDims,
      rope,
    );
    return this.emit('Concat', `${role}.out`, [first, second], dims, rope, axis);
  }

  /** [1,t,heads,hd] rows behind a head-major value of the semantic graph. */
  rowsOf(headMajor: Value): Value {
    const transpose = headMajor.producer;
    if (transpose?.op !== 'Transpose')
      throw new NpucError('XX001', {
        message: 'attention input is not a transposed projection',
        where: headMajor.name,
      });
    return transpose.input(0);
  }

  /** A rotated query or key as [1,t,heads,hd] rows, plus its head-major form where the rotary form makes that first. */
  rotatedRows(value: Value, role: string): { rows?: Value; headMajor?: Value } {
    const rope = value.producer;
    if (rope?.op !== 'RotaryEmbedding')
      throw new NpucError('XX001', { message: 'attention input is not rotated', where: value.name });
    if (this.contract.rotary === 'full') return { rows: this.rotate(role, this.rowsOf(rope.input(0)), rope) };
    return { headMajor: this.rotate(role, rope.input(0), rope) };
  }

  lowerAttention(node: Node, layer: number): void {
    const { graph, contract, tokens, cache } = this;
    const names = contract.names;
    const at = `layers.${layer}`;
    const [query, key, value] = [node.input(0), node.input(1), node.input(2)];
    const [, heads, , headDim] = query.dims as [number, number, number, number];
    const keyValueHeads = key.dims[1]!;
    const group = heads / keyValueHeads;
    const lead = contract.lead === 'heads-first' ? [keyValueHeads, 1] : [1, keyValueHeads];

    const q = this.rotatedRows(query, `${at}.q_rope`);
    const k = this.rotatedRows(key, `${at}.k_rope`);
    const queryHeads = q.headMajor ?? this.permute(`${at}.q_rope.by_head`, q.rows!, [0, 2, 1, 3], node);
    const inGraph = contract.update === 'in-graph' || contract.update === 'shift';
    const [keyRows, valueRows] = inGraph
      ? [`${at}.keys.new`, `${at}.values.new`]
      : [names.newKey(layer), names.newValue(layer)];
    // A head-major key [b,h,t,d] takes the permutation of the rows' axes through the swap of axes 1 and 2.
    const newKey = k.rows
      ? this.permute(keyRows, k.rows, contract.key.order, node)
      : this.permute(
          keyRows,
          k.headMajor!,
          contract.key.order.map((axis) => [0, 2, 1, 3][axis]!),
          node,
        );
    const newValue = this.permute(valueRows, this.rowsOf(value), contract.value.order, node);
    const grow = (...values: Parameters<ContractLowering['appendState']>): Value => {
      if (contract.update === 'shift') return this.shiftState(...values);
      return inGraph ? this.updateState(...values) : this.appendState(...values);
    };
    const keys = grow(
      `key_${layer}`,
      newKey,
      names.pastKey(layer),
      names.newKey(layer),
      contract.key.timeAxis,
      `${at}.keys`,
      node,
    );
    const values = grow(
      `value_${layer}`,
      newValue,
      names.pastValue(layer),
      names.newValue(layer),
      contract.value.timeAxis,
      `${at}.values`,
      node,
    );

    const keyOperand = this.permute(`${at}.keys.operand`, keys, contract.key.toOperand ?? [0, 1, 2, 3], node);
    const valueOperand = this.permute(`${at}.values.operand`, values, contract.value.toOperand ?? [0, 1, 2, 3], node);
    const grouped = this.reshape(`${at}.q_rope.grouped`, queryHeads, [...lead, group * tokens, headDim], node);
    const products = this.emit('MatMul', `${at}.scores`, [grouped, keyOperand], [...lead, group * tokens, cache], node);
    const scores = this.reshape(`${at}.scores.by_head`, products, [1, heads, tokens, cache], node);
    const masked = this.emit(
      'Add',
      `${at}.scores.masked`,
      [scores, graph.find(names.mask)!],
      [1, heads, tokens, cache],
      node,
    );
    const probabilities = this.emit('Softmax', `${at}.probs`, [masked], [1, heads, tokens, cache], node, {
      axis: intAttribute(-1),
    });
    const weights = this.reshape(`${at}.probs.grouped`, probabilities, [...lead, group * tokens, cache], node);
    const mixed = this.emit('MatMul', `${at}.mixed`, [weights, valueOperand], [...lead, group * tokens, headDim], node);
    const context = this.reshape(`${at}.mixed.by_head`, mixed, [1, heads, tokens, headDim], node);
    graph.replaceUses(node.output(0), context);
    graph.removeNode(node);
  }

  /** Past input, concat and new output of one cache; the semantic state's ports move to them. */
  appendState(
    state: string,
    fresh: Value,
    pastName: string,
    newName: string,
    axis: number,
    role: string,
    node: Node,
  ): Value {
    const { graph, tokens, cache } = this;
    const wholeDims = fresh.dims.map((dim, i) => (i === axis ? cache : dim));
    const past = this.replacePast(
      state,
      pastName,
      fresh.dims.map((dim, i) => (i === axis ? cache - tokens : dim)),
    );
    if (fresh.name !== newName) {
      // The new rows need no permutation in this layout: the output is the rows themselves.
      graph.renameValue(fresh, newName);
    }
    graph.states.set(state, { input: past, output: fresh });
    return this.emit('Concat', role, [past, fresh], wholeDims, node, { axis: intAttribute(axis) });
  }

  /**
   * A cache that the graph itself updates: in comes the whole of it, out goes the whole of it with the new rows.
   *
   *     cache, rows -> Slice(TensorScatter(Pad(cache), rows, first position), 0..cache)
   *
   * A chunk that is filled up may reach past the cache's end; runtimes then move what is written forward, over valid rows
   * (measured: LiteRT's DYNAMIC_UPDATE_SLICE). The padding takes what lies past the end; a decode graph needs none.
   */
  updateState(
    state: string,
    fresh: Value,
    pastName: string,
    newName: string,
    axis: number,
    role: string,
    node: Node,
  ): Value {
    const { graph, tokens, cache } = this;
    const dims = fresh.dims;
    const along = (length: number): number[] => dims.map((dim, i) => (i === axis ? length : dim));
    const past = this.replacePast(state, pastName, along(cache));
    const write = (name: string, into: Value, length: number): Value =>
      this.emit('TensorScatter', name, [into, fresh, this.writeIndex()], along(length), node, {
        axis: intAttribute(axis),
      });
    let updated: Value;
    if (tokens === 1) updated = write(newName, past, cache);
    else {
      const vector = (name: string, values: readonly number[]): Value =>
        graph.find(name) ?? graph.addConstant(name, Tensor.of('i64', [values.length], values));
      const none = dims.map(() => 0);
      const pads = vector(`pads.${axis}`, [...none, ...none.map((_, i) => (i === axis ? tokens : 0))]);
      const longer = this.emit('Pad', `${role}.longer`, [past, pads], along(cache + tokens), node);
      const written = write(`${role}.written`, longer, cache + tokens);
      const bounds = [vector('zero', [0]), vector(`slots.${cache}`, [cache]), vector(`axis.${axis}`, [axis])];
      updated = this.emit('Slice', newName, [written, ...bounds], along(cache), node);
    }
    graph.states.set(state, { input: past, output: updated });
    return updated;
  }

  /**
   * A cache whose newest token is in the last slot: the new rows go behind all others, the oldest ones fall out.
   *
   *     cache, rows -> Concat(cache, rows), which attention looks at; out goes all of it but the first rows
   */
  shiftState(
    state: string,
    fresh: Value,
    pastName: string,
    newName: string,
    axis: number,
    role: string,
    node: Node,
  ): Value {
    const { graph, tokens, cache } = this;
    const along = (length: number): number[] => fresh.dims.map((dim, i) => (i === axis ? length : dim));
    const past = this.replacePast(state, pastName, along(cache - tokens));
    const whole = this.emit('Concat', role, [past, fresh], along(cache), node, { axis: intAttribute(axis) });
    const vector = (name: string, value: number): Value =>
      graph.find(name) ?? graph.addConstant(name, Tensor.of('i64', [1], [value]));
    const bounds = [vector(`slot.${tokens}`, tokens), vector(`slot.${cache}`, cache), vector(`axis.${axis}`, axis)];
    const kept = this.emit('Slice', newName, [whole, ...bounds], along(cache - tokens), node);
    graph.states.set(state, { input: past, output: kept });
    return whole;
  }

  /** The position of the first new token, a vector of one, made once for all layers. */
  writeIndex(): Value {
    const { graph, tokens, contract } = this;
    const made = graph.find('write_index');
    if (made) return made;
    const bound = (name: string, value: number): Value => graph.addConstant(name, Tensor.of('i64', [1], [value]));
    let first = graph.find(contract.names.positions!)!;
    if (tokens > 1) {
      first = graph.emit('Slice', [first, bound('first', 0), bound('second', 1)], {
        name: 'first_position',
        type: tensorType('i32', [1]),
      });
    }
    return graph.emit('Cast', [first], {
      name: 'write_index',
      type: tensorType('i64', [1]),
      attributes: { to: intAttribute(DTYPES.i64.code) },
    });
  }

  /** Puts the contract's input in the place of the semantic state's. */
  replacePast(state: string, name: string, dims: readonly number[]): Value {
    const { graph } = this;
    const old = graph.states.get(state)!;
    const at = graph.inputs.indexOf(old.input);
    for (const use of [...old.input.uses]) use.node.setInput(use.index, undefined);
    this.removeInput(old.input);
    const past = graph.addInput(name, tensorType('f32', dims));
    graph.inputs.splice(graph.inputs.indexOf(past), 1);
    graph.inputs.splice(at, 0, past);
    return past;
  }

  /** Tokens, mask, tables, then caches; inputs that nothing reads any more go. */
  orderInputs(): void {
    const states = new Set([...this.graph.states.values()].map((port) => port.input));
    const inputs = this.graph.inputs.filter((input) => !states.has(input) && input.uses.size > 0);
    for (const input of this.graph.inputs)
      if (!states.has(input) && input.uses.size === 0) this.graph.removeValue(input);
    this.graph.inputs.splice(0, this.graph.inputs.length, ...inputs, ...states);
  }
}
