// Energy meter: INA226 behind an RP2040 or an Arduino, line protocol E1 (see README.md).
// The chip averages 4 conversions of 1.1 ms for voltage and current each: a new value every 8.8 ms.

#include <Wire.h>

static const char CHIP[] = "ina226";
static const char NAME[] = "bench";
static const char FIRMWARE[] = "1.0";
static const uint8_t ADDRESS = 0x40;
static const uint32_t SHUNT_UOHM = 10000;
static const uint32_t CONVERSION_US = 1100;
static const uint32_t AVERAGES = 4;
static const uint32_t LINE_PERIOD_US = 10000;  // 100 lines a second
static const uint8_t MARKER_PIN = 15;

static const uint8_t REG_CONFIG = 0x00;
static const uint8_t REG_SHUNT = 0x01;    // 2.5 uV a step
static const uint8_t REG_BUS = 0x02;      // 1.25 mV a step
static const uint8_t REG_MASK = 0x06;     // bit 3: conversion ready
static const uint16_t CONFIG = 0x4327;    // 4 averages, 1.1 ms, 1.1 ms, shunt and bus, continuous
static const uint16_t READY = 0x0008;
static const int16_t SHUNT_LIMIT = 32767;

static const uint8_t FLAG_RANGE = 1;
static const uint8_t FLAG_SILENT = 2;

static uint32_t sequence = 0;
static uint64_t now_us = 0;       // micros() carried on to 64 bits
static uint32_t last_micros = 0;
static uint64_t last_value_us = 0;
static uint64_t next_line_us = 0;
static int32_t millivolts = 0;
static int32_t microamperes = 0;
static int64_t picojoules = 0;    // below a microjoule; carried into the sum
static uint64_t microjoules = 0;
static bool have_value = false;
static uint8_t flags = 0;

static bool writeRegister(uint8_t reg, uint16_t value) {
  Wire.beginTransmission(ADDRESS);
  Wire.write(reg);
  Wire.write(value >> 8);
  Wire.write(value & 0xFF);
  return Wire.endTransmission() == 0;
}

static bool readRegister(uint8_t reg, uint16_t *value) {
  Wire.beginTransmission(ADDRESS);
  Wire.write(reg);
  if (Wire.endTransmission(false) != 0 || Wire.requestFrom(ADDRESS, (uint8_t)2) != 2) {
    return false;
  }
  *value = (uint16_t)Wire.read() << 8;
  *value |= (uint16_t)Wire.read();
  return true;
}

static void advanceClock() {
  uint32_t now = micros();
  now_us += (uint32_t)(now - last_micros);
  last_micros = now;
}

static uint16_t crc16(const char *text) {
  uint16_t crc = 0xFFFF;
  for (; *text; text++) {
    crc ^= (uint16_t)(uint8_t)*text << 8;
    for (uint8_t bit = 0; bit < 8; bit++) {
      crc = crc & 0x8000 ? (crc << 1) ^ 0x1021 : crc << 1;
    }
  }
  return crc;
}

static void sendLine(const char *body) {
  char tail[8];
  snprintf(tail, sizeof tail, "*%04x\n", crc16(body));
  Serial.print(body);
  Serial.print(tail);
}

// printf of 64 bits is not to be had on every core.
static char *decimal(uint64_t value, char *end) {
  *end = 0;
  do {
    *--end = '0' + value % 10;
    value /= 10;
  } while (value);
  return end;
}

static void sendSample() {
  char time_text[21], energy_text[21], body[120];
  snprintf(body, sizeof body, "E1,%lu,%s,%ld,%ld,%s,%u,%u", (unsigned long)sequence++,
           decimal(now_us, time_text + 20), (long)millivolts, (long)microamperes,
           decimal(microjoules, energy_text + 20), digitalRead(MARKER_PIN) ? 1 : 0, flags);
  sendLine(body);
  flags = 0;
}

static void sendHeader() {
  char body[120];
  snprintf(body, sizeof body, "I1,%s,%s,%s,%lu,%lu,%lu,%lu", NAME, FIRMWARE, CHIP,
           (unsigned long)SHUNT_UOHM, (unsigned long)CONVERSION_US, (unsigned long)AVERAGES,
           1000000UL / LINE_PERIOD_US);
  sendLine(body);
}

// Each value is the mean since the one before: energy is their product, with no gap between.
static void integrate(uint64_t value_us) {
  if (have_value) {
    int64_t nanowatts = (int64_t)millivolts * microamperes;
    int64_t elapsed_us = value_us - last_value_us;
    picojoules += nanowatts * elapsed_us / 1000;  // nW·us = fJ
    if (picojoules > 0) {
      microjoules += picojoules / 1000000;
      picojoules %= 1000000;
    }
  }
  have_value = true;
  last_value_us = value_us;
}

static void takeValue() {
  uint16_t ready, shunt, bus;
  if (!readRegister(REG_MASK, &ready)) {
    flags |= FLAG_SILENT;
    return;
  }
  if (!(ready & READY)) {
    return;
  }
  if (!readRegister(REG_SHUNT, &shunt) || !readRegister(REG_BUS, &bus)) {
    flags |= FLAG_SILENT;
    return;
  }
  int16_t steps = (int16_t)shunt;
  if (steps == SHUNT_LIMIT) {
    flags |= FLAG_RANGE;
  }
  microamperes = (int32_t)((int64_t)steps * 2500000 / (int32_t)SHUNT_UOHM);
  millivolts = (int32_t)((uint32_t)bus * 125 / 100);
  integrate(now_us);
}

void setup() {
  Serial.begin(115200);
  pinMode(MARKER_PIN, INPUT_PULLDOWN);
  Wire.begin();
  Wire.setClock(400000);
  writeRegister(REG_CONFIG, CONFIG);
  last_micros = micros();
}

void loop() {
  advanceClock();
  takeValue();
  while (Serial.available()) {
    if (Serial.read() == '?') {
      sendHeader();
    }
  }
  if (now_us >= next_line_us) {
    next_line_us = now_us + LINE_PERIOD_US;
    sendSample();
  }
}
