import type { Graph, Node, Value } from '../compiler/ir/graph.ts';

/** Memory for the values inside a graph, laid out by when each of them is needed. */
export interface ArenaPlan {
  /** Bytes of the arena: the highest end of any value. */
  readonly bytes: number;
  /** The most bytes that are alive at once: no layout can do with less. */
  readonly leastBytes: number;
  /** Bytes alive while each node runs, in the graph's order. */
  readonly alive: readonly number[];
}

/** Values begin at multiples of this, as in LiteRT's arena. */
const ALIGNMENT = 64;

interface Block {
  readonly bytes: number;
  /** First and last node that needs it. */
  readonly first: number;
  readonly last: number;
  readonly order: number;
}

/**
 * Lays the values that nodes compute into one arena: largest first, each at the lowest offset where nothing that is alive at
 * the same time lies (the greedy-by-size layout of LiteRT's memory planner). Inputs, outputs and constants lie elsewhere; a
 * reshaped value is the value that it was made from.
 * @param bytesOf bytes of a value as the target stores it
 */
export function planArena(graph: Graph, bytesOf: (value: Value) => number): ArenaPlan {
  const outside = new Set<Value>([...graph.inputs, ...graph.outputs].map(rootOf));
  const spans = new Map<Value, { first: number; last: number; bytes: number }>();
  graph.nodes.forEach((node, at) => {
    for (const value of [...node.inputs, ...node.outputs]) {
      if (!value || value.data) continue;
      const root = rootOf(value);
      if (outside.has(root) || root.data) continue;
      const span = spans.get(root);
      if (span) span.last = at;
      else spans.set(root, { first: at, last: at, bytes: align(bytesOf(root)) });
    }
  });
  const blocks = [...spans.values()].map((span, order): Block => ({ ...span, order }));
  const alive = new Array<number>(graph.nodes.length).fill(0);
  for (const { first, last, bytes } of blocks) for (let at = first; at <= last; at++) alive[at]! += bytes;
  return { bytes: layBlocks(blocks), leastBytes: Math.max(0, ...alive), alive };
}

/** A value that only has another shape lies where its source lies. */
function rootOf(value: Value): Value {
  let root = value;
  for (
    let node: Node | undefined = root.producer;
    node?.op === 'Reshape' || node?.op === 'Identity';
    node = root.producer
  )
    root = node.input(0);
  return root;
}

function layBlocks(blocks: readonly Block[]): number {
  const placed: { readonly block: Block; readonly offset: number }[] = [];
  let end = 0;
  for (const block of [...blocks].sort((a, b) => b.bytes - a.bytes || a.first - b.first || a.order - b.order)) {
    const beside = placed
      .filter((other) => other.block.first <= block.last && block.first <= other.block.last)
      .sort((a, b) => a.offset - b.offset);
    let offset = 0;
    for (const other of beside) {
      if (other.offset - offset >= block.bytes) break;
      offset = Math.max(offset, other.offset + other.block.bytes);
    }
    placed.push({ block, offset });
    end = Math.max(end, offset + block.bytes);
  }
  return end;
}

function align(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}
