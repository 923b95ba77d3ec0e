import type { Node } from '../../../compiler/ir/graph.ts';
import type { LayoutChoice } from './assign-layout.ts';
import type { GraphLowering } from './graph-lowering.ts';

/** How one ONNX op becomes TFLite operators. */
export interface GraphOp {
  /** The layout that it runs in; undefined for an op that is no operator of its own. */
  readonly layout: LayoutChoice | ((node: Node) => LayoutChoice | undefined);
  /** What about a node has no form; undefined when nothing. */
  readonly refuse?: (node: Node) => string | undefined;
  readonly lower: (node: Node, lowering: GraphLowering) => void;
}

export type GraphOps = Readonly<Record<string, GraphOp>>;
