import { NpucError } from '../errors.ts';
import { type DType, dtypeOfOnnxCode } from '../ir/dtype.ts';
import type { Dim, ValueType } from '../ir/graph.ts';
import type { EntryMessage, GraphMessage, Int, TypeMessage } from './onnx-schema.ts';

/** Gives dimensions that a model leaves unknown names of their own (`unk__3`), none of which the model uses. */
export class DimensionNames {
  readonly #used: Set<string> = new Set();
  #counter = 0;

  /** Notes every dim_param of a graph and its subgraphs. */
  collect(graph: GraphMessage): void {
    for (const infos of [graph.inputs, graph.outputs, graph.valueInfos]) {
      for (const info of infos ?? []) this.collectType(info.type);
    }
    for (const node of graph.nodes ?? []) {
      for (const attribute of node.attributes ?? []) {
        if (attribute instanceof Uint8Array) continue;
        if (attribute.graph) this.collect(attribute.graph);
        for (const inner of attribute.graphs ?? []) this.collect(inner);
        this.collectType(attribute.typeProto);
      }
    }
  }

  collectType(type: TypeMessage | undefined): void {
    if (!type) return;
    for (const dim of type.tensor?.shape?.dims ?? []) if (dim.param) this.#used.add(dim.param);
    this.collectType(type.sequence?.element);
    this.collectType(type.map?.element);
    this.collectType(type.optional?.element);
  }

  fresh(): string {
    let name: string;
    do name = `unk__${this.#counter++}`;
    while (this.#used.has(name));
    return name;
  }
}

/**
 * A TypeProto as a value type; undefined when it says nothing, or a kind that the IR has no type for (sparse, opaque).
 * @throws IM306 for an element type that ONNX 1.20 does not know, or an absurd dimension
 */
export function readType(
  message: TypeMessage | undefined,
  names: DimensionNames,
  where: string,
): ValueType | undefined {
  if (!message) return undefined;
  if (message.tensor) {
    const code = Number(message.tensor.elementType ?? 0);
    if (code === 0) return undefined;
    const dtype = readDType(code, where);
    const { shape } = message.tensor;
    if (!shape) return { kind: 'tensor', dtype };
    return {
      kind: 'tensor',
      dtype,
      shape: (shape.dims ?? []).map((dim): Dim => {
        if (dim.value !== undefined && dim.value >= 0) return readLength(dim.value, where);
        // Exporters write 0 for none, -1, an empty name or a question mark for unknown.
        return dim.param && dim.param !== '?' ? dim.param : names.fresh();
      }),
    };
  }
  if (message.sequence) return { kind: 'sequence', element: readType(message.sequence.element, names, where) };
  if (message.optional) return { kind: 'optional', element: readType(message.optional.element, names, where) };
  if (message.map) {
    const key = readDType(Number(message.map.keyType ?? 0), where);
    return { kind: 'map', key, element: readType(message.map.element, names, where) };
  }
  return undefined;
}

/** @throws IM306 */
export function readDType(code: number, where: string): DType {
  const dtype = dtypeOfOnnxCode(code);
  if (dtype) return dtype;
  throw new NpucError('IM306', { message: `element type ${code} is not known`, where });
}

/** A dimension as a number. @throws IM306 when it is negative or beyond 2^53 */
export function readLength(value: Int, where: string): number {
  if (typeof value === 'number' && value >= 0) return value;
  throw new NpucError('IM306', { message: `${value} is not a possible dimension`, where });
}

/** Key and value pairs; undefined when there are none. */
export function readEntries(entries: readonly EntryMessage[] | undefined): Map<string, string> | undefined {
  if (!entries) return undefined;
  return new Map(entries.map((entry) => [entry.key ?? '', entry.value ?? '']));
}
