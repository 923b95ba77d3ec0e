import { createHash } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { TABLES, type TableName, tableLayout, UNIONS } from '../../../targets/tflite/schema.ts';
import { BuiltinOperator, operatorName, TensorType, tensorTypeName } from '../../../targets/tflite/schema-enums.ts';

/** Every slot, type, default and code, one a line, sorted. */
function listing(): string {
  const lines: string[] = [];
  // The header of .litertlm files is of another schema.
  const own = ([name]: [string, unknown]): boolean => !name.startsWith('Bundle');
  for (const [table] of Object.entries(TABLES).filter(own) as [TableName, unknown][]) {
    const { slots, fields } = tableLayout(table);
    lines.push(`${table} slots ${slots}`);
    for (const field of fields) {
      const place = `${table} ${field.slot} ${field.name}`;
      if (field.kind === 'scalar') lines.push(`${place} ${field.type} ${field.absent}`);
      else if (field.kind === 'vector') lines.push(`${place} ${field.type}[]`);
      else if (field.kind === 'table') lines.push(`${place} ${field.table}`);
      else if (field.kind === 'tables') lines.push(`${place} ${field.table}[]`);
      else lines.push(`${place} ${field.kind === 'bytes' ? 'u8[]' : field.kind}`);
    }
  }
  for (const [union, members] of Object.entries(UNIONS).filter(own)) {
    members.forEach((member, i) => {
      lines.push(`${union} ${member} = ${i + 1}`);
    });
  }
  for (const [name, code] of Object.entries(TensorType)) lines.push(`TensorType ${name} = ${code}`);
  for (const [name, code] of Object.entries(BuiltinOperator)) lines.push(`BuiltinOperator ${name} = ${code}`);
  return lines.sort().join('\n');
}

describe('TFLite schema', () => {
  it("has the slots, defaults and codes of LiteRT's own", () => {
    // Digest of the same listing made from schema_py_generated.py of the wheel ai-edge-litert 2.3.0 (its Prepend*Slot
    // calls give slot, type and default). A new schema changes it; then make the listing again from the new wheel.
    const text = listing();
    expect(text.split('\n')).toHaveLength(870);
    expect(createHash('sha256').update(text).digest('hex')).toBe(
      '99b4e1a0cdbf595326829f89e6e495883b7bce3ef3915b8324aa11dca1cac9a7',
    );
  });

  it('spells the codes that decoders need', () => {
    expect([0, 7, 9, 126, 151, 206].map(operatorName)).toEqual([
      'ADD',
      'EMBEDDING_LOOKUP',
      'FULLY_CONNECTED',
      'BATCH_MATMUL',
      'DYNAMIC_UPDATE_SLICE',
      'STABLEHLO_COMPOSITE',
    ]);
    expect(operatorName(9999)).toBe('operator 9999');
    expect(tensorTypeName(TensorType.INT4)).toBe('INT4');
    expect(tensorTypeName(99)).toBe('type 99');
    expect(UNIONS.BuiltinOptions2[21 - 1]).toBe('StableHLOCompositeOptions');
  });
});
