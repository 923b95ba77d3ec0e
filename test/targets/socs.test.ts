import { describe, expect, test } from 'vitest';
import {
  findSoc,
  HTP_CONTEXT_LIMIT_BYTES,
  HTP_FEATURES,
  listSocs,
  requireFeature,
  SOC_SOURCES,
  socSupports,
} from '../../targets/socs.ts';

describe('SoC table', () => {
  test('part and marketing names resolve, whatever their case and spelling', () => {
    const names: Record<string, string> = {
      SM8750: 'SM8750',
      sm8750: 'SM8750',
      'SM8750-AB': 'SM8750',
      'SM8650-1-AC': 'SM8650',
      'Snapdragon 8 Elite': 'SM8750',
      'Qualcomm Snapdragon™ 8 Elite Mobile Platform': 'SM8750',
      '8 elite gen 5': 'SM8850',
      'snapdragon 8 gen 5': 'SM8845',
      '8gen3': 'SM8650',
      'Snapdragon 8 Plus Gen 1': 'SM8475',
      '8+ Gen 1': 'SM8475',
      'Snapdragon 888': 'SM8350',
      'X Elite': 'SC8380XP',
      'Snapdragon X2 Elite': 'SC8480XP',
      sa8295p: 'SA8295',
    };
    for (const [name, part] of Object.entries(names)) expect(findSoc(name).name, name).toBe(part);
  });

  test('every name of the table finds its own row, and numbers are distinct', () => {
    for (const soc of listSocs()) for (const name of [soc.name, ...soc.marketing]) expect(findSoc(name)).toBe(soc);
    const numbers = listSocs().map((soc) => soc.number);
    expect(new Set(numbers).size).toBe(numbers.length);
    for (const required of ['SM8350', 'SM8450', 'SM8475', 'SM8550', 'SM8650', 'SM8750', 'SM8845', 'SM8850', 'SC8380XP'])
      expect(findSoc(required).measured).toBe(true);
  });

  test('every fact says where it comes from, and whether it was measured', () => {
    const columns = new Set(listSocs().flatMap((soc) => Object.keys(soc)));
    expect([...Object.keys(SOC_SOURCES), 'measured'].sort()).toEqual([...columns].sort());
    for (const { source } of [...Object.values(SOC_SOURCES), ...Object.values(HTP_FEATURES)])
      expect(source.length).toBeGreaterThan(5);
    expect(listSocs().find(({ name }) => name === 'SC8480XP')).toMatchObject({ number: 88, arch: 81, measured: true });
    expect(listSocs().find(({ name }) => name === 'SA8295')).toMatchObject({ number: 39, arch: 68, measured: true });
    expect(HTP_CONTEXT_LIMIT_BYTES).toBe(4 * 2 ** 30);
  });

  test('an unknown name is refused with the nearest ones', () => {
    for (const [name, nearest] of [
      ['SM8751', 'SM8750 (8 Elite)'],
      ['snapdragon 8 elit', 'SM8750'],
      ['SM8950', 'SM8550'],
      ['', ''],
      ['Dimensity 9400', ''],
    ] as const) {
      expect(() => findSoc(name)).toThrow(
        expect.objectContaining({ code: 'TG001', hint: expect.stringContaining(nearest) }),
      );
    }
  });

  test('features follow the architecture', () => {
    const features = (name: string) =>
      (Object.keys(HTP_FEATURES) as (keyof typeof HTP_FEATURES)[]).filter((f) => socSupports(findSoc(name), f));
    expect(features('SM8350')).toEqual([]);
    expect(features('SM8450')).toEqual(['fp16', 'lpbq']);
    expect(features('SM8550')).toEqual(['fp16', 'lpbq', 'weight-sharing', 'matmul-16x16', 'kv-s16']);
    expect(features('SM8850')).toEqual(['fp16', 'lpbq', 'weight-sharing', 'matmul-16x16', 'kv-s16', 'extended-udma']);
    expect(() => requireFeature(findSoc('SM8450'), 'kv-s16', 'use a u8 cache')).toThrow(
      expect.objectContaining({ code: 'TG002', message: expect.stringMatching(/SM8450 \(HTP v69\)/) }),
    );
    expect(() => requireFeature(findSoc('SM8750'), 'kv-s16', '')).not.toThrow();
  });
});
