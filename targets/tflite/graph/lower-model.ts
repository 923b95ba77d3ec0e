import { NpucError } from '../../../compiler/errors.ts';
import type { Graph, Node } from '../../../compiler/ir/graph.ts';
import type { PortForm } from '../lowering.ts';
import type { TfliteModel } from '../model.ts';
import { BuiltinOperator } from '../schema-enums.ts';
import { BufferPool } from '../subgraph-builder.ts';
import { assignLayouts } from './assign-layout.ts';
import { compactModel } from './compact.ts';
import { GraphLowering } from './graph-lowering.ts';
import type { GraphOps } from './graph-op.ts';
import { ELEMENTWISE } from './lower-elementwise.ts';
import { MOVEMENT } from './lower-movement.ts';
import { PRODUCTS } from './lower-products.ts';
import { REDUCTIONS } from './lower-reduce.ts';
import { RESIZES } from './lower-resize.ts';
import { SCATTERS } from './lower-scatter.ts';
import { WINDOWS } from './lower-windows.ts';

const OPS: GraphOps = { ...ELEMENTWISE, ...WINDOWS, ...MOVEMENT, ...RESIZES, ...REDUCTIONS, ...PRODUCTS, ...SCATTERS };

/** A graph as a TFLite model, and what became of it. */
export interface LoweredModel {
  readonly model: TfliteModel;
  readonly operators: number;
  /** TRANSPOSE operators that are left. */
  readonly transposes: number;
  /** Nodes that run on floats between conversions in a quantized graph, by the reason. */
  readonly floats: ReadonlyMap<string, readonly Node[]>;
}

/**
 * Lowers a frozen graph of any kind, float or with encodings, to a TFLite model of one signature with the graph's name.
 * Channels-last operators run in that layout, all others in whichever leaves the fewest transposes over the whole graph; ports
 * keep the model's own layout.
 * @param ports float ports get QUANTIZE and DEQUANTIZE at the boundary, quantized ports are the integers themselves
 * @throws TF201 naming every node that has no form, TF202 for types
 */
export function lowerModel(graph: Graph, ports: PortForm): LoweredModel {
  refuseUnknown(graph);
  const layouts = assignLayouts(graph, (node) => {
    const { layout } = OPS[node.op]!;
    return typeof layout === 'function' ? layout(node) : layout;
  });
  const pool = new BufferPool();
  const lowering = new GraphLowering(graph, layouts, pool);
  const inputs = graph.inputs.filter((value) => graph.isUsed(value)).map((value) => lowering.addInput(value, ports));
  for (const node of graph.nodes) if (!lowering.absorbed.has(node)) OPS[node.op]!.lower(node, lowering);
  const taken = new Set(inputs.map(({ tensor }) => tensor));
  const outputs = graph.outputs.map((value) => {
    const port = lowering.addOutput(value, ports, taken);
    taken.add(port.tensor);
    return port;
  });
  const subgraph = lowering.builder.graph;
  subgraph.inputs = inputs.map(({ tensor }) => tensor);
  subgraph.outputs = outputs.map(({ tensor }) => tensor);
  const model: TfliteModel = {
    version: 3,
    description: 'npuc',
    subgraphs: [subgraph],
    buffers: pool.buffers,
    signatures: [{ key: graph.name, subgraph: 0, inputs, outputs }],
    metadata: [],
  };
  compactModel(model);
  const { operators } = subgraph;
  return {
    model,
    operators: operators.length,
    transposes: operators.filter(({ code }) => code === BuiltinOperator.TRANSPOSE).length,
    floats: lowering.floats,
  };
}

/** Lists everything that cannot be lowered, grouped by reason. */
function refuseUnknown(graph: Graph): void {
  const reasons = new Map<string, string[]>();
  for (const node of graph.nodes) {
    const known = node.domain === '' ? OPS[node.op] : undefined;
    const reason = known ? known.refuse?.(node) : node.domain ? `${node.domain}.${node.op}` : node.op;
    if (reason) reasons.set(reason, [...(reasons.get(reason) ?? []), node.from[0] ?? node.name]);
  }
  if (reasons.size === 0) return;
  const list = [...reasons].map(([reason, nodes]) => {
    const names = [...new Set(nodes)];
    return `${reason} (${names.slice(0, 3).join(', ')}${names.length > 3 ? ` and ${names.length - 3} more` : ''})`;
  });
  throw new NpucError('TF201', {
    message: `TFLite has no form for ${list.join('; ')}`,
    where: [...reasons.values()][0]![0]!,
    hint: 'compile the model for another target, or replace these operators',
  });
}
