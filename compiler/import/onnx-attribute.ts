import { NpucError } from '../errors.ts';
import { encodeMessage } from '../export/protobuf.ts';
import type { Attribute, Graph } from '../ir/graph.ts';
import type { ImportContext } from './onnx-graph.ts';
import {
  ATTRIBUTE,
  ATTRIBUTE_TYPE,
  type AttributeMessage,
  type GraphMessage,
  type SparseMessage,
} from './onnx-schema.ts';
import { readType } from './onnx-types.ts';

/** AttributeProto.AttributeType SPARSE_TENSOR and the number of the field that holds one. */
const SPARSE_TENSOR = 11;
const SPARSE_TENSOR_FIELD = 22;
const TEXT = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/**
 * An AttributeProto as an attribute. What the IR has no kind for is carried byte for byte: references to an attribute of the
 * enclosing function, sparse tensors, type lists, strings that are not text.
 * @throws IM302 when the value that the type announces is absent; errors of tensors and subgraphs
 */
export function readAttribute(
  message: AttributeMessage,
  context: ImportContext,
  where: string,
  subgraph: (message: GraphMessage) => Graph,
): Attribute {
  const raw = (): Attribute => ({ kind: 'raw', value: message.span!.read().slice() });
  const tensor = (entry: Parameters<typeof context.tensors.read>[0]) => context.tensors.read(entry, where);
  const needed = <T>(value: T | undefined): T => {
    if (value !== undefined) return value;
    throw new NpucError('IM302', { message: `attribute '${message.name ?? ''}' has no value`, where });
  };
  if (message.reference) return raw();
  switch (Number(message.type ?? 0) || impliedType(message)) {
    case ATTRIBUTE_TYPE.float:
      return { kind: 'float', value: message.float ?? 0 };
    case ATTRIBUTE_TYPE.int:
      return { kind: 'int', value: message.int ?? 0 };
    case ATTRIBUTE_TYPE.string: {
      const value = decodeText(message.string);
      return value === undefined ? raw() : { kind: 'string', value };
    }
    case ATTRIBUTE_TYPE.tensor:
      return { kind: 'tensor', value: tensor(needed(message.tensor)) };
    case ATTRIBUTE_TYPE.graph:
      return { kind: 'graph', value: subgraph(needed(message.graph)) };
    case ATTRIBUTE_TYPE.floats:
      return { kind: 'floats', value: message.floats ?? [] };
    case ATTRIBUTE_TYPE.ints:
      return { kind: 'ints', value: message.ints ?? [] };
    case ATTRIBUTE_TYPE.strings: {
      const values = (message.strings ?? []).map(decodeText);
      if (values.some((value) => value === undefined)) return raw();
      return { kind: 'strings', value: values as string[] };
    }
    case ATTRIBUTE_TYPE.tensors:
      return { kind: 'tensors', value: (message.tensors ?? []).map(tensor) };
    case ATTRIBUTE_TYPE.graphs:
      return { kind: 'graphs', value: (message.graphs ?? []).map(subgraph) };
    case ATTRIBUTE_TYPE.type: {
      const value = readType(needed(message.typeProto), context.dimensions, where);
      return value === undefined ? raw() : { kind: 'type', value };
    }
    default:
      return raw();
  }
}

/** Files of 2017 leave the type out: the field that is there says it. 0 when none is. */
function impliedType(message: AttributeMessage): number {
  if (message.float !== undefined) return ATTRIBUTE_TYPE.float;
  if (message.int !== undefined) return ATTRIBUTE_TYPE.int;
  if (message.string !== undefined) return ATTRIBUTE_TYPE.string;
  if (message.tensor !== undefined) return ATTRIBUTE_TYPE.tensor;
  if (message.graph !== undefined) return ATTRIBUTE_TYPE.graph;
  if (message.floats !== undefined) return ATTRIBUTE_TYPE.floats;
  if (message.ints !== undefined) return ATTRIBUTE_TYPE.ints;
  if (message.strings !== undefined) return ATTRIBUTE_TYPE.strings;
  if (message.tensors !== undefined) return ATTRIBUTE_TYPE.tensors;
  if (message.graphs !== undefined) return ATTRIBUTE_TYPE.graphs;
  return 0;
}

/** undefined when the bytes are not UTF-8, or too many for a string: then the attribute stays bytes. */
function decodeText(bytes: Uint8Array | undefined): string | undefined {
  try {
    return TEXT.decode(bytes ?? new Uint8Array(0));
  } catch {
    return undefined;
  }
}

/** A sparse initializer as the `sparse_value` of a Constant node, which means the same. */
export function readSparseInitializer(message: SparseMessage, name: string): Attribute {
  const header = encodeMessage(ATTRIBUTE, { name: 'sparse_value', type: SPARSE_TENSOR });
  const bytes = message.span!.read();
  if (message.values?.externalData) {
    throw new NpucError('IM308', { message: 'sparse tensors cannot be external data', where: name });
  }
  header.int(SPARSE_TENSOR_FIELD * 8 + 2);
  header.int(bytes.length);
  header.bytes(bytes);
  return { kind: 'raw', value: header.toBytes() };
}
