import type { Attribute } from '../ir/graph.ts';
import { readAttribute } from './onnx-attribute.ts';
import { type ImportContext, readGraph } from './onnx-graph.ts';
import { ATTRIBUTE, type AttributeMessage, asMessage } from './onnx-schema.ts';
import { TensorSource } from './onnx-tensor.ts';
import { DimensionNames } from './onnx-types.ts';
import { BytesSource, decodeMessage, WireReader } from './protobuf.ts';

/** An AttributeProto that the IR carries as bytes: a `raw` attribute, or a default of a local function. */
export interface AttributeBytes {
  readonly name: string;
  /** Its value; kind `raw` again where the IR has no kind for it. */
  readonly attribute: Attribute;
  /** The attribute of the enclosing function that it refers to (ref_attr_name). */
  readonly reference: string | undefined;
}

/** Reads an AttributeProto. @throws IO003 on bytes that are none, and the errors of tensors and subgraphs inside */
export function readAttributeBytes(bytes: Uint8Array, where: string): AttributeBytes {
  const source = new BytesSource(bytes, where);
  const message = asMessage<AttributeMessage>(decodeMessage(new WireReader(source), ATTRIBUTE, bytes.length));
  const context: ImportContext = { tensors: new TensorSource(source), dimensions: new DimensionNames() };
  const attribute = readAttribute(message, context, where, (graph) => readGraph(graph, context));
  return { name: message.name ?? '', attribute, reference: message.reference };
}
