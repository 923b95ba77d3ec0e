import type { Graph, Node, Value } from '../../../compiler/ir/graph.ts';
import { elementCount } from '../../../compiler/ir/tensor.ts';
import { isConstant, renamedBy } from './graph-lowering.ts';
import {
  isIdentity,
  type Layout,
  movesNothing,
  type Order,
  orderedDims,
  orderOf,
  permutationBetween,
} from './order.ts';

/** What a node can run in: one layout only, or either. */
export type LayoutChoice = Layout | 'any';

/** Weight of one transpose against the elements that it moves: their number counts first, their size breaks ties. */
const PER_TRANSPOSE = 1e9;
/** A transpose that moves nothing is a RESHAPE: no work, but an operator. */
const PER_RESHAPE = 1;

/**
 * Decides for every node at once in which layout it runs, so that as few transposes as possible are left over the whole graph.
 * Nodes that can run in either layout are turned together with their neighbours until no turn saves anything.
 * @param choiceOf what a node can run in; undefined for nodes that are no operators of their own
 */
export function assignLayouts(graph: Graph, choiceOf: (node: Node) => LayoutChoice | undefined): Map<Node, Layout> {
  const fixed = new Map<Node, Layout>();
  const free: Node[] = [];
  for (const node of graph.nodes) {
    const choice = choiceOf(node);
    if (choice === 'any') free.push(node);
    else if (choice) fixed.set(node, choice);
  }
  const operators = new Set([...fixed.keys(), ...free]);
  const costs = new TransposeCosts(graph, (node) => operators.has(node));
  let best: Map<Node, Layout> | undefined;
  let least = Number.POSITIVE_INFINITY;
  for (const start of ['plain', 'last'] as const) {
    const layouts = new Map([...fixed, ...free.map((node): [Node, Layout] => [node, start])]);
    descend(layouts, free, costs);
    const total = costs.total(layouts);
    if (total < least) [best, least] = [layouts, total];
  }
  return best!;
}

const turned = (layout: Layout): Layout => (layout === 'plain' ? 'last' : 'plain');

/** Turns single nodes and whole regions of one layout as long as that lowers the cost. */
function descend(layouts: Map<Node, Layout>, free: readonly Node[], costs: TransposeCosts): void {
  const movable = new Set(free);
  const tryTurn = (nodes: readonly Node[]): boolean => {
    const touched = costs.touchedBy(nodes);
    const before = costs.of(touched, layouts);
    for (const node of nodes) layouts.set(node, turned(layouts.get(node)!));
    if (costs.of(touched, layouts) < before) return true;
    for (const node of nodes) layouts.set(node, turned(layouts.get(node)!));
    return false;
  };
  for (let changed = true; changed; ) {
    changed = false;
    const seen = new Set<Node>();
    for (const node of free) {
      if (tryTurn([node])) changed = true;
      if (seen.has(node)) continue;
      const region = regionOf(node, layouts, movable, costs);
      for (const member of region) seen.add(member);
      if (region.length > 1 && tryTurn(region)) changed = true;
    }
  }
}

/** The nodes of either layout that hang together and run in the same one. */
function regionOf(
  start: Node,
  layouts: ReadonlyMap<Node, Layout>,
  movable: ReadonlySet<Node>,
  costs: TransposeCosts,
): Node[] {
  const region = new Set([start]);
  for (const node of region)
    for (const neighbour of costs.neighbours(node))
      if (movable.has(neighbour) && layouts.get(neighbour) === layouts.get(start)) region.add(neighbour);
  return [...region];
}

/** One reader of a value: a node that may run in either layout, or an output of the graph. */
interface Reader {
  readonly node: Node | undefined;
  /** The order of the home value's axes that the reader asks for, by layout. */
  readonly wants: Readonly<Record<Layout, Order>>;
}

/** What has a home tensor, and who reads it, looking through the Transposes in between. */
interface Home {
  readonly value: Value;
  readonly maker: Node | undefined;
  readonly readers: Reader[];
}

class TransposeCosts {
  readonly #homes: Map<Value, Home> = new Map();
  readonly #touched: Map<Node, Set<Home>> = new Map();

  constructor(graph: Graph, isOperator: (node: Node) => boolean) {
    for (const node of graph.nodes) {
      if (!isOperator(node)) continue;
      for (const value of node.inputs) if (value) this.#addReader(value, node);
      for (const output of node.outputs) if (output) this.#touch(node, this.#home(output));
    }
    for (const output of graph.outputs) this.#addReader(output, undefined);
  }

  #addReader(value: Value, node: Node | undefined): void {
    if (isConstant(value) || value.type?.kind !== 'tensor') return;
    let source = value;
    const rank = value.dims.length;
    let wants = { plain: orderOf('plain', rank), last: orderOf('last', rank) };
    for (let renamed = renamedBy(source); renamed; renamed = renamedBy(source)) {
      const { permutation } = renamed;
      const through = (order: Order): Order => order.map((axis) => permutation[axis]!);
      wants = { plain: through(wants.plain), last: through(wants.last) };
      source = renamed.source;
      if (isConstant(source)) return;
    }
    const home = this.#home(source);
    home.readers.push({ node, wants });
    if (node) this.#touch(node, home);
  }

  #home(value: Value): Home {
    let home = this.#homes.get(value);
    if (!home) {
      home = { value, maker: value.producer, readers: [] };
      this.#homes.set(value, home);
    }
    return home;
  }

  #touch(node: Node, home: Home): void {
    const touched = this.#touched.get(node) ?? new Set();
    this.#touched.set(node, touched.add(home));
  }

  /** Values whose cost depends on the layouts of some nodes. */
  touchedBy(nodes: readonly Node[]): Set<Home> {
    return new Set(nodes.flatMap((node) => [...(this.#touched.get(node) ?? [])]));
  }

  neighbours(node: Node): Set<Node> {
    const found = new Set<Node>();
    for (const { maker, readers } of this.#touched.get(node) ?? []) {
      if (maker) found.add(maker);
      for (const reader of readers) if (reader.node) found.add(reader.node);
    }
    return found;
  }

  total(layouts: ReadonlyMap<Node, Layout>): number {
    return this.of(this.#homes.values(), layouts);
  }

  /** The cost of every order that is asked for and is not the home's own, each once. */
  of(homes: Iterable<Home>, layouts: ReadonlyMap<Node, Layout>): number {
    let sum = 0;
    for (const { value, maker, readers } of homes) {
      const own = orderOf((maker && layouts.get(maker)) ?? 'plain', value.dims.length);
      const dims = orderedDims(value.dims, own);
      const orders = new Map<string, Order>();
      for (const { node, wants } of readers) {
        const order = wants[(node && layouts.get(node)) ?? 'plain'];
        orders.set(order.join(), order);
      }
      for (const order of orders.values()) {
        const permutation = permutationBetween(own, order);
        if (isIdentity(permutation)) continue;
        sum += movesNothing(dims, permutation) ? PER_RESHAPE : PER_TRANSPOSE + elementCount(dims);
      }
    }
    return sum;
  }
}
